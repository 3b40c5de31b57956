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

// take makes durable what a second source says of a leg.
func (b *Bridge) take(ctx context.Context, node bulkhead.NodeID, source cdr.Source, leg string, body []byte) error {
	r, decodeErr := b.cfg.DecodeCDR(node, source, leg, body)
	if decodeErr != nil {
		b.metrics.cdrUndecoded.WithLabelValues(string(node), string(source)).Inc()
		b.log.Warn("call record of a node could not be decoded whole", "node", node, "source", source, "leg", leg,
			"kept", r.Leg != "", "bytes", len(body), "error", brief(decodeErr))
	}
	r, ok := b.rec.complete(node, r)
	if !ok {
		raw := fmt.Appendf(nil, "undecodable call record of node %q from %s: ", clip(node, 64), source)
		return b.timedAppend(ctx, [][]byte{append(raw, body...)})
	}
	e := cdr.Entry{Record: &r}
	if b.cfg.KeepRaw || decodeErr != nil {
		e.Raw = b.pack(body)
	}
	p, err := cdr.Encode(e)
	if err != nil {
		return err
	}
	if err := b.timedAppend(ctx, [][]byte{p}); err != nil {
		return err
	}
	b.metrics.cdrRecords.WithLabelValues(string(node), string(source)).Inc()
	b.account(&r)
	b.rec.reported(node, &r)
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
