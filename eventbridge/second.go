package eventbridge

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

const (
	maxCDRBody    = 1<<20 - 1024 // bytes of one call record; with what is put before it it fits a stream's record
	cdrAppendWait = 3 * time.Second
)

// serveCDR takes a call record that a node's switch posts, and answers 200
// once it is durable. The switch waits for that, and repeats the record or
// writes it to a file otherwise, so records may come twice. A body that cannot
// be read is accepted too, raw: the switch would only send it again.
func (b *Bridge) serveCDR(w http.ResponseWriter, req *http.Request) {
	user, password, _ := req.BasicAuth()
	node := bulkhead.NodeID(user)
	if !b.cfg.IsNode(node, password) {
		w.Header().Set("WWW-Authenticate", `Basic realm="bulkhead"`)
		problem(w, http.StatusUnauthorized, "post with HTTP Basic: the node's id and its password")
		return
	}
	body, ok := readBody(w, req, maxCDRBody)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(req.Context(), cdrAppendWait)
	defer cancel()
	leg := clip(strings.ToValidUTF8(req.URL.Query().Get("uuid"), "?"), maxLegName)
	if err := b.take(ctx, node, cdr.SourceHTTP, leg, body); err != nil {
		problem(w, http.StatusServiceUnavailable, "the record cannot be stored now, send it again: "+brief(err))
		return
	}
	_, _ = w.Write([]byte("ok\n")) // the switch may have gone
}

// told is what a second source said of a leg.
type told struct {
	node    bulkhead.NodeID
	source  cdr.Source
	leg     string // as the request or the file's name has it
	bytes   int    // of what it said
	bad     error  // why it could not be read whole
	record  cdr.Record
	named   bool // the record says which leg it is of; else the payload is the words themselves
	payload []byte
}

// take makes durable what a second source says of a leg.
func (b *Bridge) take(ctx context.Context, node bulkhead.NodeID, source cdr.Source, leg string, body []byte) error {
	t, err := b.read(node, source, leg, body)
	if err != nil {
		return err
	}
	return b.keep(ctx, t)
}

// read makes of a second source's words what can be stored. The error is that
// of the encoding.
func (b *Bridge) read(node bulkhead.NodeID, source cdr.Source, leg string, body []byte) (told, error) {
	t := told{node: node, source: source, leg: leg, bytes: len(body)}
	t.record, t.bad = b.cfg.DecodeCDR(node, source, leg, body)
	if t.record, t.named = b.rec.complete(node, t.record); !t.named {
		raw := fmt.Appendf(nil, "undecodable call record of node %q from %s: ", clip(node, 64), source)
		t.payload = append(raw, body...)
		return t, nil
	}
	e := cdr.Entry{Record: &t.record}
	if b.cfg.KeepRaw || t.bad != nil {
		e.Raw = b.pack(body)
	}
	var err error
	t.payload, err = cdr.Encode(e)
	return t, err
}

// keep makes all of them durable at once.
func (b *Bridge) keep(ctx context.Context, all ...told) error {
	payloads := make([][]byte, len(all))
	for i := range all {
		payloads[i] = all[i].payload
	}
	if err := b.timedAppend(ctx, payloads); err != nil {
		return err
	}
	for i := range all {
		t := &all[i]
		if t.bad != nil {
			b.metrics.cdrUndecoded.WithLabelValues(string(t.node), string(t.source)).Inc()
			b.log.Warn("call record of a node could not be decoded whole", "node", t.node, "source", t.source, "leg", t.leg,
				"kept", t.named, "bytes", t.bytes, "error", brief(t.bad))
		}
		if t.named {
			b.metrics.cdrRecords.WithLabelValues(string(t.node), string(t.source)).Inc()
			b.account(&t.record)
			b.rec.reported(t.node, &t.record)
		}
	}
	return nil
}

func (b *Bridge) pack(body []byte) []byte {
	p, _ := b.packers.Get().(*cdr.Packer)
	if p == nil {
		p = &cdr.Packer{}
	}
	defer b.packers.Put(p)
	return p.Pack(body)
}

// account counts what of a stored record an operator should look at.
func (b *Bridge) account(r *cdr.Record) {
	if r.Tenant == "" && r.Kind == cdr.Leg && b.unmatched.add(r, time.Now()) {
		b.metrics.unmatched.WithLabelValues(string(r.Node)).Inc()
	}
	for k := range r.Attrs {
		if strings.HasPrefix(k, cdr.AttrBad) {
			b.metrics.quarantined.WithLabelValues(string(r.Node), string(r.Source)).Inc()
		}
	}
}

// complete adds to a second source's record what is known of its node: the
// tenant by rules or by the A leg, the clock, the gap if the node is not heard.
// false: the record does not name its leg.
func (r *recorder) complete(id bulkhead.NodeID, rec cdr.Record) (cdr.Record, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.nodes[id]
	if n == nil {
		n = newNode(id, r.bridge.cfg.Cell)
		n.rules = r.bridge.cfg.Rules
	}
	if rec.Leg == "" || len(rec.Leg) > maxLegName {
		return rec, false
	}
	rec, ok := n.normal(rec)
	n.findTenant(&rec)
	rec.ClockOffset = n.offset
	if n.gap != nil {
		rec.Gap = n.gap.ID
	}
	return rec, ok
}

// reported notes that the end of a leg is durable although its node was not
// heard. The leg needs no synthesised record.
func (r *recorder) reported(id bulkhead.NodeID, rec *cdr.Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.nodes[id]
	if n == nil || n.gap == nil || rec.End.IsZero() {
		return
	}
	if l, ok := n.open[rec.Leg]; ok {
		l.reported = true
		n.open[rec.Leg] = l
	}
}
