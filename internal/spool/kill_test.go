package spool

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

const kills = 20

func killOptions() Options {
	o := DefaultOptions()
	o.SegmentBytes, o.MaxRecord = 32<<10, 2048 // so that kills meet rotations
	return o
}

// childWrite appends from four goroutines until it is killed, and prints a
// record's name when it is durable.
func childWrite(dir string) error {
	s, err := Open(dir, killOptions())
	if err != nil {
		return err
	}
	failed := make(chan error)
	for g := range 4 {
		go func() {
			for n := 0; ; n++ {
				name := fmt.Sprintf("%d.%d %d", os.Getpid(), g, n)
				if err := s.Append(context.Background(), []byte(name+" "+strings.Repeat("x", n%700))); err != nil {
					failed <- err
					return
				}
				fmt.Println(name)
			}
		}()
	}
	return <-failed
}

// childRead prints what it reads before it acknowledges it, and a line when it
// has, until it is killed.
func childRead(dir string) error {
	r, err := OpenReader(dir, "killed", ReaderOptions{Poll: time.Millisecond})
	if err != nil {
		return err
	}
	for i := 1; ; i++ {
		b, err := r.Read(context.Background(), i%50+1)
		if err != nil {
			return err
		}
		var out strings.Builder
		for _, p := range b.Payloads {
			fmt.Fprintf(&out, "read %s\n", p)
		}
		fmt.Print(out.String())
		if i%3 == 0 {
			continue // the next Ack holds for this one too
		}
		if err := b.Ack(); err != nil {
			return err
		}
		fmt.Printf("acked %s\n", b.Payloads[len(b.Payloads)-1])
	}
}

// killed runs a child until a random moment and returns the whole lines that
// it printed.
func killed(t *testing.T, mode, dir string) []string {
	t.Helper()
	cmd := child(t, mode, dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(out)
	var lines []string
	var kill *time.Timer
	for {
		line, err := in.ReadString('\n')
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if kill == nil { // it is at work
			kill = time.AfterFunc(time.Duration(rand.IntN(40_000))*time.Microsecond, func() { _ = cmd.Process.Kill() })
		}
		lines = append(lines, strings.TrimSuffix(line, "\n"))
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.Exited() {
		t.Fatalf("child ended by itself: %v", err)
	}
	return lines
}

// TestWriterKilled: every record that a killed writer saw acknowledged reaches
// a reader in another process, in order, and none that was never appended.
func TestWriterKilled(t *testing.T) {
	dir := t.TempDir()
	r := openReader(t, dir, "one")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	seen := map[string]int{} // deliveries by name
	wg.Go(func() {
		next := map[string]int{} // by goroutine of a writer
		for {
			b, err := r.Read(ctx, 100)
			if err != nil {
				if ctx.Err() == nil {
					t.Error(err)
				}
				return
			}
			for _, p := range b.Payloads {
				var who string
				var n, pad int
				f := strings.SplitN(string(p), " ", 3)
				if len(f) == 3 {
					who, pad = f[0], len(f[2])
					_, _ = fmt.Sscan(f[1], &n)
				}
				if pad != n%700 || n != next[who] {
					t.Errorf("record %.40q of %d bytes, want number %d of %s", p, len(p), next[who], who)
				}
				next[who] = n + 1
				seen[f[0]+" "+f[1]]++
			}
			if err := b.Ack(); err != nil {
				t.Error(err)
			}
		}
	})
	var acked []string
	for range kills {
		acked = append(acked, killed(t, "write", dir)...)
	}
	s := open(t, dir, killOptions())
	// When this one is acknowledged by the reader, all before it are.
	mark := fmt.Sprintf("%d.9 0", os.Getpid())
	appendAll(t, s, mark+" ")
	until(t, "the reader to come to the end", func() bool {
		acks, err := listAcks(dir)
		if err != nil {
			t.Fatal(err)
		}
		recs := scanAll(t, dir)
		return len(recs) > 0 && !acks[0].pos.Before(Position{Segment: recs[len(recs)-1].Segment, Offset: recs[len(recs)-1].end()})
	})
	cancel()
	wg.Wait()
	if len(acked) < kills {
		t.Fatalf("only %d records acknowledged", len(acked))
	}
	for _, name := range append(acked, mark) {
		if seen[name] != 1 { // the reader was never restarted
			t.Errorf("record %s was delivered %d times", name, seen[name])
		}
	}
	t.Logf("%d acknowledged, %d delivered, files left: %d", len(acked), len(seen), len(files(t, dir, "*.seg*")))
}

// TestReaderKilled: no record is missing over all runs of a reader, and only
// records that were not acknowledged come again.
func TestReaderKilled(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, killOptions())
	stop := make(chan struct{})
	var wg sync.WaitGroup
	total := 0
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := s.Append(context.Background(), fmt.Appendf(nil, "%d", total)); err != nil {
				t.Error(err)
				return
			}
			total++
		}
	})
	next, acked, repeated := 0, -1, 0 // next: the first never delivered
	for range kills {
		expect := -1
		for _, line := range killed(t, "read", dir) {
			what, num, _ := strings.Cut(line, " ")
			var n int
			if _, err := fmt.Sscan(num, &n); err != nil {
				t.Fatalf("line %q: %v", line, err)
			}
			if what == "acked" {
				acked = n
				continue
			}
			if expect == -1 && (n > next || n <= acked) {
				t.Fatalf("restarted with record %d; acknowledged up to %d, delivered up to %d", n, acked, next-1)
			}
			if expect != -1 && n != expect {
				t.Fatalf("record %d follows %d", n, expect-1)
			}
			expect = n + 1
			if n < next {
				repeated++
			}
			next = max(next, expect)
		}
	}
	close(stop)
	wg.Wait()
	r := openReader(t, dir, "killed")
	got, _ := drain(t, r)
	for i, p := range got {
		var n int
		if _, err := fmt.Sscan(p, &n); err != nil {
			t.Fatal(err)
		}
		if i == 0 && (n > next || n <= acked) {
			t.Fatalf("last run begins with %d; acknowledged up to %d, delivered up to %d", n, acked, next-1)
		}
		next = n + 1
	}
	if next != total {
		t.Fatalf("delivered up to %d of %d", next, total)
	}
	if left := files(t, dir, ".killed*"); len(left) != 0 {
		t.Fatalf("left behind: %v", left)
	}
	t.Logf("%d records, %d of them delivered again", total, repeated)
}
