package eventbridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/bulkhead-voip/bulkhead/cdr"
)

const (
	maxSBCBody    = 1<<20 - 64                       // bytes of one report of an SBC; with rawPrefix it fits a stream's record of 1 MiB
	rawPrefix     = "undecodable report of an SBC: " // keeps a body from passing for an entry of our own
	sbcAppendWait = 5 * time.Second                  // an SBC asks again, so it need not wait long
)

// Routes serves POST /kamailio/events and POST /freeswitch/cdr, if the bridge
// can decode such, GET /status and GET /v1/unmatched. Only /freeswitch/cdr has
// authentication: mount the others where only the operator and the SBCs of the
// cell reach them.
func (b *Bridge) Routes() http.Handler {
	r := chi.NewRouter()
	r.Get("/status", func(w http.ResponseWriter, _ *http.Request) { answer(w, b.Status()) })
	r.Get("/v1/unmatched", func(w http.ResponseWriter, _ *http.Request) { answer(w, b.Unmatched()) })
	if b.cfg.DecodeSBC != nil {
		r.Post("/kamailio/events", b.serveSBC)
	}
	if b.cfg.IsNode != nil {
		r.Post("/freeswitch/cdr", b.serveCDR)
	}
	return r
}

func answer(w http.ResponseWriter, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		problem(w, http.StatusInternalServerError, err.Error())
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(body) // the asker may have gone
}

// serveSBC answers 204 once everything in the body is durable. The SBC repeats
// a body until then, so what cannot be decoded is accepted too, raw: refusing
// it would stop all later reports behind it.
func (b *Bridge) serveSBC(w http.ResponseWriter, req *http.Request) {
	body, ok := readBody(w, req, maxSBCBody)
	if !ok {
		return
	}
	records, decodeErr := b.cfg.DecodeSBC(body)
	payloads := make([][]byte, 0, len(records)+1)
	for i := range records {
		bound(&records[i])
		p, err := cdr.Encode(cdr.Entry{Record: &records[i]})
		if err != nil {
			decodeErr = errors.Join(decodeErr, err)
			continue
		}
		payloads = append(payloads, p)
	}
	if decodeErr != nil {
		b.metrics.sbcUndecoded.Inc()
		b.log.Warn("report of an SBC could not be decoded whole; it goes into the quarantine of the store",
			"remote", req.RemoteAddr, "bytes", len(body), "error", brief(decodeErr))
		payloads = append(payloads, append([]byte(rawPrefix), body...))
	}
	if err := b.appendSBC(req, payloads); err != nil {
		problem(w, http.StatusServiceUnavailable, "the events cannot be stored now, send them again: "+brief(err))
		return
	}
	for i := range records {
		b.metrics.sbcRecords.WithLabelValues(string(records[i].Kind)).Inc()
	}
	w.WriteHeader(http.StatusNoContent)
}

// readBody reads a body of at most limit bytes; false: an error was answered.
func readBody(w http.ResponseWriter, req *http.Request, limit int64) ([]byte, bool) {
	body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, limit))
	if err == nil {
		return body, true
	}
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		problem(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("the body is longer than %d bytes", limit))
	} else {
		problem(w, http.StatusBadRequest, "the body could not be read: "+brief(err))
	}
	return nil, false
}

func (b *Bridge) appendSBC(req *http.Request, payloads [][]byte) error {
	if len(payloads) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(req.Context(), sbcAppendWait)
	defer cancel()
	return b.timedAppend(ctx, payloads)
}

// problem answers with an error as RFC 9457 has it.
func problem(w http.ResponseWriter, status int, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{ // the asker may have gone
		"title": http.StatusText(status), "status": status, "detail": detail,
	})
}
