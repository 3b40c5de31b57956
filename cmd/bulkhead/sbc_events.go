package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/siptest"
)

// The proxy's events wait here as Kamailio's do in its queue.
const (
	sbcEventsMax   = 10000
	sbcEventsBatch = 50
	sbcEventsRetry = 500 * time.Millisecond
)

// sbcEvents posts the proxy's events to the event bridge, as a Kamailio with
// the shipped configuration does, and repeats a batch until it was taken.
type sbcEvents struct {
	url   string
	sbc   bulkhead.SBCID
	token string
	log   *slog.Logger
	queue chan siptest.Event
}

func newSBCEvents(bridge string, sbc bulkhead.SBCID, token string, log *slog.Logger) *sbcEvents {
	return &sbcEvents{url: "http://" + bridge + "/kamailio/events", sbc: sbc, token: token, log: log, queue: make(chan siptest.Event, sbcEventsMax)}
}

// add never waits. At the limit an event is lost, and said to be.
func (e *sbcEvents) add(ev siptest.Event) {
	select {
	case e.queue <- ev:
	default:
		e.log.Error("an SBC event was dropped: the event bridge has not taken any for long", "limit", sbcEventsMax, "reason", ev.Reason)
	}
}

func (e *sbcEvents) Run(ctx context.Context) error {
	for {
		var batch bytes.Buffer
		select {
		case <-ctx.Done():
			return nil
		case ev := <-e.queue:
			e.fill(&batch, ev)
		}
		for e.post(ctx, batch.Bytes()) != nil {
			select {
			case <-ctx.Done():
				if n := len(e.queue) + bytes.Count(batch.Bytes(), []byte("\n")); n > 0 {
					e.log.Error("SBC events are lost with the SBC: the event bridge did not take them", "events", n)
				}
				return nil
			case <-time.After(sbcEventsRetry):
			}
		}
	}
}

// fill writes ev and what waits behind it, one JSON object a line.
func (e *sbcEvents) fill(batch *bytes.Buffer, ev siptest.Event) {
	enc := json.NewEncoder(batch)
	for n := 1; ; n++ {
		_ = enc.Encode(ev) // an Event is all strings, and the buffer takes them
		if n == sbcEventsBatch {
			return
		}
		select {
		case ev = <-e.queue:
		default:
			return
		}
	}
}

func (e *sbcEvents) post(ctx context.Context, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.SetBasicAuth(string(e.sbc), e.token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		e.log.Debug("SBC events not delivered yet", "error", err)
		return err
	}
	resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("the event bridge answered %s", resp.Status)
	}
	return nil
}
