package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/bulkhead-voip/bulkhead/cdr"
	"github.com/bulkhead-voip/bulkhead/freeswitch"
	"github.com/bulkhead-voip/bulkhead/internal/spool"
)

const (
	wholeLegs   = 24_000 // a run; a record each, of three events
	wholeLong   = 72_000 // through the whole, which stores a batch a second
	wholeRuns   = 3
	wholeWindow = 2000            // legs that the switch is ahead of who decodes them at the most: 48 MB
	wholeAhead  = 8000            // legs that it is ahead of the spool: events of fewer than a bridge may queue
	wholeBatch  = 500             // records in one write to the spool and in one pipeline of XADD
	wholeBegin  = 2 * time.Second // until batches have their size
	wholeWait   = 30 * time.Second
)

// endToEnd compares the records a second from the bytes of an event socket to
// rows in a ClickHouse with the slowest of the parts on the way, each alone
// with the machine: reading and decoding the events, the spool, XADD in
// pipelines, and the insert.
func endToEnd(ctx context.Context) ([]figure, error) {
	dir, err := os.MkdirTemp(".", ".bench-whole") // the disk that the work is on, not a tmpfs
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	s, err := startStores(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer s.close()
	events, err := legEvents()
	if err != nil {
		return nil, err
	}
	parts := []struct {
		name string
		run  func(ctx context.Context, s *stores, dir, name string, events []template) (float64, error)
		v    []float64
	}{
		{name: "end_to_end", run: wholePipeline}, {name: "end_to_end_esl_decode", run: decodeAlone}, {name: "end_to_end_spool", run: spoolAlone},
		{name: "end_to_end_xadd", run: xaddAlone}, {name: "end_to_end_insert", run: insertAlone},
	}
	for run := range wholeRuns {
		// The slowest part right before the whole and right behind it: a machine's speed drifts.
		for _, i := range []int{1, 0, 1, 2, 3, 4} {
			name := "run" + strconv.Itoa(run) + "_" + strconv.Itoa(i)
			rate, err := parts[i].run(ctx, s, filepath.Join(dir, name), name, events)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", parts[i].name, err)
			}
			parts[i].v = append(parts[i].v, rate)
		}
	}
	var out []figure
	for i := range parts {
		out = append(out, figure{name: parts[i].name, value: median(parts[i].v), unit: "records/s"})
	}
	slowest := out[1].value
	for _, f := range out[2:] {
		slowest = min(slowest, f.value)
	}
	out[0].ratio, out[0].bar = out[0].value/slowest, bar{">=", 0.5}
	return out, nil
}

// template is the captured body of an event, cut where the leg's uuid stands.
type template [][]byte

// legEvents are those that the record of one leg is made of.
func legEvents() ([]template, error) {
	bodies, err := eslBodies()
	if err != nil {
		return nil, err
	}
	var out []template
	var leg string
	for _, want := range []string{"CHANNEL_CREATE", "CHANNEL_ANSWER", "CHANNEL_HANGUP_COMPLETE"} {
		for _, b := range bodies {
			e, err := freeswitch.DecodeJSON(b)
			if err != nil {
				return nil, err
			}
			if e.Name == want && (leg == "" || leg == e.Leg) {
				leg = e.Leg
				out = append(out, bytes.Split(b, []byte(leg)))
				break
			}
		}
	}
	if len(out) != 3 {
		return nil, errors.New("the captures hold no whole leg")
	}
	return out, nil
}

// eslSwitch is the least of a FreeSWITCH to an event source: it answers the
// questions at the begin, and sends the events of many legs.
type eslSwitch struct {
	l      net.Listener
	events []template
	legs   int
	run    string // makes the uuids of each run others
	taken  *tally // legs that are decoded
	stored *tally // legs that are in a spool; nil: there is none

	mu sync.Mutex // of writing
}

func startSwitch(ctx context.Context, run string, events []template, legs int, taken, stored *tally) (*eslSwitch, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &eslSwitch{l: l, events: events, legs: legs, run: run, taken: taken, stored: stored}
	context.AfterFunc(ctx, func() { l.Close() })
	go s.serve(ctx)
	return s, nil
}

func (s *eslSwitch) config() freeswitch.Config {
	return freeswitch.Config{Addr: s.l.Addr().String(), Password: benchToken}
}

// serve takes one client. It ends with ctx.
func (s *eslSwitch) serve(ctx context.Context) {
	c, err := s.l.Accept()
	if err != nil {
		return
	}
	context.AfterFunc(ctx, func() { c.Close() })
	s.write(c, []byte("Content-Type: auth/request\n\n"))
	in := bufio.NewScanner(c)
	for in.Scan() {
		switch command := in.Text(); {
		case command == "":
		case strings.HasPrefix(command, "api global_getvar"):
			s.write(c, []byte("Content-Type: api/response\nContent-Length: 5\n\nbench"))
		case strings.HasPrefix(command, "api show channels"):
			s.write(c, []byte("Content-Type: api/response\nContent-Length: 15\n\n{\"row_count\":0}"))
		default:
			s.write(c, []byte("Content-Type: command/reply\nReply-Text: +OK\n\n"))
			if strings.HasPrefix(command, "event ") {
				go s.send(ctx, c) // ends with the connection
			}
		}
	}
}

func (s *eslSwitch) write(c io.Writer, text []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, _ = c.Write(text) // a client that has gone asks no more
}

// wholeBlock is how many legs the switch tells of in one write.
const wholeBlock = 4

// send tells of all legs, one after the other. It shares the machine with what
// is measured, and so only changes the uuids in what it has sent before.
func (s *eslSwitch) send(ctx context.Context, c io.Writer) {
	const uuid = 36
	var block []byte
	places := make([][]int, wholeBlock) // of each leg's uuid
	for leg := range places {
		for _, t := range s.events {
			size := (len(t) - 1) * uuid
			for _, part := range t {
				size += len(part)
			}
			block = fmt.Appendf(block, "Content-Length: %d\nContent-Type: text/event-json\n\n", size)
			for i, part := range t {
				if i > 0 {
					places[leg] = append(places[leg], len(block))
					block = append(block, make([]byte, uuid)...)
				}
				block = append(block, part...)
			}
		}
	}
	run := strings.ReplaceAll(s.run, "_", "")
	for n := 0; n < s.legs; n += wholeBlock {
		for leg := range places {
			id := fmt.Sprintf("%-8.8s-0000-4000-8000-%012x", run, n+leg)
			for _, at := range places[leg] {
				copy(block[at:], id)
			}
		}
		s.write(c, block)
		if s.taken.wait(ctx, n-wholeWindow) != nil || s.stored != nil && s.stored.wait(ctx, n-wholeAhead) != nil {
			return
		}
	}
}

// countedSource counts the legs that ended.
type countedSource struct {
	*freeswitch.Source
	ended *tally
}

func (s countedSource) Run(ctx context.Context, emit func(cdr.Event)) error {
	n := 0
	return s.Source.Run(ctx, func(e cdr.Event) {
		emit(e)
		if e.Type != cdr.Closed {
			return
		}
		if n++; n == 100 {
			s.ended.add(n)
			n = 0
		}
	})
}

func wholePipeline(ctx context.Context, s *stores, dir, name string, events []template) (_ float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, wholeWait)
	defer cancel()
	taken, durable := newTally(), newTally()
	sw, err := startSwitch(ctx, name, events, wholeLong, taken, durable)
	if err != nil {
		return 0, err
	}
	source, err := freeswitch.NewSource(freeswitch.SourceConfig{
		Node: benchNode, Cell: "c1", ESL: sw.config(), KeepRaw: true, Relist: time.Hour, // its list of channels is not what it tells of
	}, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		return 0, err
	}
	p, err := startPipeline(ctx, s, dir, name, durable, countedSource{source, taken})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, p.end()) }()
	if err := durable.wait(ctx, wholeLong); err != nil {
		return 0, fmt.Errorf("wait for the spool: %w", err)
	}
	told := time.Now()
	if err := p.stored.wait(ctx, wholeLong); err != nil {
		return 0, fmt.Errorf("wait for rows: %w", err)
	}
	// In between: the first batches are small, and the last one waits for the
	// end of its interval with nothing to do.
	rate := p.stored.rate(wholeBegin, told)
	if rate == 0 {
		return 0, fmt.Errorf("%d records were told of too fast to say how many a second", wholeLong)
	}
	if n, err := p.store.Counts(ctx); err != nil || n.Records != wholeLong {
		return 0, fmt.Errorf("the store has %+v, want %d records: %w", n, wholeLong, err)
	}
	return rate, nil
}

// decodeAlone measures the reader of events on the same bytes.
func decodeAlone(ctx context.Context, _ *stores, _, name string, events []template) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, wholeWait)
	defer cancel()
	taken := newTally()
	sw, err := startSwitch(ctx, name, events, wholeLegs, taken, nil)
	if err != nil {
		return 0, err
	}
	conn, err := freeswitch.Dial(ctx, sw.config())
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	start := time.Now()
	if _, err := conn.Command(ctx, "event json ALL"); err != nil {
		return 0, err
	}
	for n := range wholeLegs * len(events) {
		m, err := conn.Next(ctx)
		if err != nil {
			return 0, err
		}
		if _, err := freeswitch.DecodeJSON(m.Body); err != nil {
			return 0, err
		}
		if n%300 == 299 {
			taken.add(100)
		}
	}
	return wholeLegs / time.Since(start).Seconds(), nil
}

// wholeEntries are records as the pipeline makes them of the events.
func wholeEntries(name string) []cdr.Entry {
	out := make([]cdr.Entry, wholeLegs)
	now := time.Now()
	for i := range out {
		r := ackRecord(i, now)
		r.Leg = name + "-" + r.Leg
		r.ID = cdr.NewID("c1", benchNode, r.Leg)
		out[i].Record = &r
	}
	return out
}

func wholePayloads(name string) ([][]byte, error) {
	var out [][]byte
	for _, e := range wholeEntries(name) {
		b, err := cdr.Encode(e)
		if err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}

func spoolAlone(ctx context.Context, _ *stores, dir, name string, _ []template) (float64, error) {
	payloads, err := wholePayloads(name)
	if err != nil {
		return 0, err
	}
	sp, err := spool.Open(dir, spool.DefaultOptions())
	if err != nil {
		return 0, err
	}
	defer sp.Close()
	start := time.Now()
	for i := 0; i < len(payloads); i += wholeBatch {
		if err := sp.Append(ctx, payloads[i:i+wholeBatch]...); err != nil {
			return 0, err
		}
	}
	return wholeLegs / time.Since(start).Seconds(), nil
}

func xaddAlone(ctx context.Context, s *stores, _, name string, _ []template) (float64, error) {
	payloads, err := wholePayloads(name)
	if err != nil {
		return 0, err
	}
	client, err := redisClient(s)
	if err != nil {
		return 0, err
	}
	defer client.Close()
	start := time.Now()
	for i := 0; i < len(payloads); i += wholeBatch {
		_, err := client.Pipelined(ctx, func(p redis.Pipeliner) error {
			for _, b := range payloads[i : i+wholeBatch] {
				p.XAdd(ctx, &redis.XAddArgs{Stream: name, Values: []any{"p", b}})
			}
			return nil
		})
		if err != nil {
			return 0, err
		}
	}
	rate := wholeLegs / time.Since(start).Seconds()
	return rate, client.Del(ctx, name).Err()
}

// insertAlone measures the warehouse with whole batches of records that are
// all new to it.
func insertAlone(ctx context.Context, s *stores, _, name string, _ []template) (float64, error) {
	entries := wholeEntries(name)
	w, err := s.open(ctx, name)
	if err != nil {
		return 0, err
	}
	defer w.Close()
	start := time.Now()
	for i := 0; i < len(entries); i += pipelineBatch {
		if err := w.Insert(ctx, entries[i:min(len(entries), i+pipelineBatch)]); err != nil {
			return 0, err
		}
	}
	return wholeLegs / time.Since(start).Seconds(), nil
}
