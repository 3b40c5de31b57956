package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/bulkhead-voip/bulkhead/freeswitch"
)

const (
	eslRuns   = 7
	eslEvents = 20_000 // a run
)

// eslCaptures hold events as a FreeSWITCH sent them.
var eslCaptures = []string{
	"freeswitch/testdata/esl/json-bridge.txt",
	"freeswitch/testdata/esl/json-bridge-busy.txt",
	"freeswitch/testdata/esl/array-and-odd-values-json.txt",
}

// eslDecode compares our reader, from the socket to the fields that a record
// needs, with encoding/json alone decoding the same bodies from memory.
func eslDecode(ctx context.Context) ([]figure, error) {
	bodies, err := eslBodies()
	if err != nil {
		return nil, err
	}
	var ours, base []float64
	for range eslRuns {
		a, err := timeReader(ctx, bodies)
		if err != nil {
			return nil, err
		}
		b, err := timeUnmarshal(bodies)
		if err != nil {
			return nil, err
		}
		ours, base = append(ours, a), append(base, b)
	}
	rate, baseline := median(ours), median(base)
	return []figure{
		{name: "esl_decode", value: rate, unit: "events/s", ratio: rate / baseline, bar: bar{">=", 0.8}},
		{name: "esl_decode_baseline", value: baseline, unit: "events/s"},
	}, nil
}

// eslBodies cuts the JSON bodies out of the captures.
func eslBodies() ([][]byte, error) {
	var out [][]byte
	for _, name := range eslCaptures {
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("read the captured events (run this in the repository's root): %w", err)
		}
		for {
			at := bytes.Index(b, []byte(`{"Event-Name"`))
			if at < 0 {
				break
			}
			dec := json.NewDecoder(bytes.NewReader(b[at:]))
			var body json.RawMessage
			if err := dec.Decode(&body); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			out = append(out, bytes.Clone(b[at:at+int(dec.InputOffset())]))
			b = b[at+int(dec.InputOffset()):]
		}
	}
	if len(out) == 0 {
		return nil, errors.New("the captures hold no events")
	}
	return out, nil
}

// timeReader measures a whole client that is sent the bodies over loopback.
func timeReader(ctx context.Context, bodies [][]byte) (float64, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	served := make(chan error, 1)
	go func() { served <- serveEvents(l, bodies) }()
	conn, err := freeswitch.Dial(ctx, freeswitch.Config{
		Addr: l.Addr().String(), Password: benchToken, QueueBytes: 1 << 30, // the sender never pauses, as no switch does
	})
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	start := time.Now()
	for n := 0; n < eslEvents; n++ {
		m, err := conn.Next(ctx)
		if err != nil {
			return 0, err
		}
		if _, err := freeswitch.DecodeJSON(m.Body); err != nil {
			return 0, err
		}
	}
	rate := eslEvents / time.Since(start).Seconds()
	return rate, <-served
}

// serveEvents is the least of a FreeSWITCH: it greets, takes any password and
// sends events.
func serveEvents(l net.Listener, bodies [][]byte) error {
	c, err := l.Accept()
	if err != nil {
		return err
	}
	if _, err := io.WriteString(c, "Content-Type: auth/request\n\n"); err != nil {
		return err
	}
	if _, err := c.Read(make([]byte, 256)); err != nil {
		return err
	}
	var out bytes.Buffer
	out.WriteString("Content-Type: command/reply\nReply-Text: +OK accepted\n\n")
	for n := 0; n < eslEvents; n++ {
		body := bodies[n%len(bodies)]
		fmt.Fprintf(&out, "Content-Length: %d\nContent-Type: text/event-json\n\n%s", len(body), body)
		if out.Len() > 64<<10 {
			if _, err := out.WriteTo(c); err != nil {
				return err
			}
		}
	}
	_, err = out.WriteTo(c)
	return err
}

func timeUnmarshal(bodies [][]byte) (float64, error) {
	start := time.Now()
	for n := 0; n < eslEvents; n++ {
		var m map[string]any
		if err := json.Unmarshal(bodies[n%len(bodies)], &m); err != nil {
			return 0, err
		}
	}
	return eslEvents / time.Since(start).Seconds(), nil
}
