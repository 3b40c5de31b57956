package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead/siptest"
)

// sipTraffic is what a generator is told that makes calls through a real
// switch: phones on both sides of it, which alone know what happened.
type sipTraffic struct {
	Switch string // its SIP address
	Phones string // address of the phones that it calls
	Calls  int
	Rate   float64 // calls a second
}

// sipLegsPerCall is how many legs a call has, as sipKinds are drawn.
const sipLegsPerCall = 1.92

// sipKinds are the numbers that the dialplan of asterisktest knows.
var sipKinds = []struct {
	number   string
	weight   int
	outbound int // legs that the switch dials
}{{"1001", 60, 1}, {"4000", 15, 0}, {"1002", 10, 1}, {"1003", 8, 1}, {"3001", 7, 2}}

// sipTruth is a call as its phones saw it. Every call has a caller's number of
// its own, by which its legs are known whatever source told of them.
type sipTruth struct {
	Caller   string
	Number   string
	Outbound int // legs that were dialled; -1: the call went wrong, and they are not known
	Answered bool
	// What was billed lies between these, for the caller's leg and for the one
	// that was answered: the switch hears of each step after one phone and before
	// the other.
	Min, Max time.Duration
}

// sipGenerator makes the calls.
type sipGenerator struct {
	sipTraffic
	callers *siptest.Phone

	mu     sync.Mutex
	ledger *json.Encoder
	reach  map[string]time.Time // when a callee answered at the earliest, by the caller's number
}

// generate makes the calls, and says "done" when all have ended.
func (c sipTraffic) generate(seed uint64, ledger *os.File, stdin io.Reader, stdout io.Writer) error {
	g := &sipGenerator{sipTraffic: c, ledger: json.NewEncoder(ledger), reach: map[string]time.Time{}}
	callees, err := siptest.NewPhone(siptest.PhonesConfig{Listen: c.Phones}, siptest.PhoneConfig{User: "*", Domain: "phones", OnInvite: g.called})
	if err != nil {
		return err
	}
	defer callees.Close()
	if g.callers, err = siptest.NewPhone(siptest.PhonesConfig{Listen: "127.0.1.1:0"}, siptest.PhoneConfig{User: "caller", Domain: c.Switch}); err != nil {
		return err
	}
	defer g.callers.Close()
	fmt.Fprintln(stdout, "up")
	rnd := rand.New(rand.NewPCG(seed, 3))
	tick := time.NewTicker(time.Duration(float64(time.Second) / c.Rate))
	defer tick.Stop()
	var calls sync.WaitGroup
	for n := range c.Calls {
		<-tick.C
		kind, talk := 0, 200*time.Millisecond+time.Duration(rnd.Int64N(int64(3*time.Second)))
		for w := rnd.IntN(100); w >= sipKinds[kind].weight; kind++ {
			w -= sipKinds[kind].weight
		}
		calls.Go(func() { g.call(fmt.Sprintf("1555%07d", n), kind, talk) })
	}
	calls.Wait()
	if err := ledger.Sync(); err != nil {
		return err
	}
	fmt.Fprintln(stdout, "done")
	_, err = io.Copy(io.Discard, stdin)
	return err
}

// called says what a phone does.
func (g *sipGenerator) called(in *siptest.Incoming) siptest.Behaviour {
	const delay = 150 * time.Millisecond
	switch in.Request().Recipient.User {
	case "1002":
		return siptest.Behaviour{Code: 486}
	case "1003", "1999":
		return siptest.Behaviour{Delay: time.Minute}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.reach[in.Request().From().Address.User] = time.Now().Add(delay)
	return siptest.Behaviour{Delay: delay}
}

func (g *sipGenerator) call(caller string, kind int, talk time.Duration) {
	k := sipKinds[kind]
	truth := sipTruth{Caller: caller, Number: k.number, Outbound: k.outbound}
	defer func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if err := g.ledger.Encode(truth); err != nil {
			fmt.Fprintln(os.Stderr, "generator: ledger:", err)
		}
	}()
	wrong := func(what string, err error) {
		truth.Outbound = -1
		fmt.Fprintf(os.Stderr, "generator: call to %s: %s: %v\n", k.number, what, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	dial, giveUp := context.WithCancel(ctx)
	defer giveUp()
	if k.number == "1003" {
		defer time.AfterFunc(400*time.Millisecond, giveUp).Stop()
	}
	begin := time.Now()
	c, err := g.callers.Dial(dial, k.number, siptest.DialOptions{FromUser: caller})
	if err != nil {
		refused := (*siptest.StatusError)(nil)
		if busy := errors.As(err, &refused) && refused.Code == 486; busy != (k.number == "1002") || !busy && k.number != "1003" {
			wrong("it is not answered", err)
		}
		return
	}
	answered := time.Now()
	truth.Answered = true
	earliest := begin
	g.mu.Lock()
	if at, ok := g.reach[caller]; ok {
		earliest = at
	}
	g.mu.Unlock()
	if k.number == "4000" { // answered for a second, and ended by the switch
		select {
		case <-c.Done():
		case <-ctx.Done():
			wrong("nobody hangs up", ctx.Err())
		}
		truth.Min, truth.Max = time.Second, time.Since(earliest)
	} else {
		<-time.After(talk) // the length of the call
		truth.Min = time.Since(answered)
	}
	if err := c.Hangup(ctx); err != nil {
		wrong("hang up", err)
	}
	truth.Max = max(truth.Max, time.Since(earliest))
}

// sipLedger reads what the phones saw, by the caller's number.
func (g *generator) sipLedger(t *testing.T) map[string]sipTruth {
	t.Helper()
	f, err := os.Open(g.cfg.Ledger)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out := map[string]sipTruth{}
	for dec := json.NewDecoder(f); dec.More(); {
		var c sipTruth
		if err := dec.Decode(&c); err != nil {
			t.Fatalf("ledger: %v", err)
		}
		out[c.Caller] = c
	}
	return out
}
