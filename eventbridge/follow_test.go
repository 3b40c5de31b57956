package eventbridge

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

// pairRows reads rows of a made-up form, "begin LEG" and "end LEG". A leg whose
// begin it has not seen has no Start.
type pairRows struct{ begun map[string]bool }

func (p *pairRows) Row(row []byte) (cdr.Record, bool, error) {
	what, leg, ok := strings.Cut(string(row), " ")
	switch {
	case !ok || what != "begin" && what != "end":
		return cdr.Record{}, false, fmt.Errorf("no such row: %w", bulkhead.Invalid)
	case what == "begin":
		p.begun[leg] = true
		return cdr.Record{}, false, nil
	}
	r := cdr.Record{Source: cdr.SourceFile, Leg: leg, End: at(5)}
	if p.begun[leg] {
		r.Start = at(1)
	}
	delete(p.begun, leg)
	return r, true, nil
}

func (p *pairRows) State() ([]byte, error) { return json.Marshal(p.begun) }

func (p *pairRows) Restore(b []byte) error {
	p.begun = map[string]bool{}
	return json.Unmarshal(b, &p.begun)
}

// followed is a bridge that follows a log, in a bubble of its own time.
type followed struct {
	t      *testing.T
	path   string
	cfg    Config
	stream *memStream
	bridge *Bridge
	stop   func()
	legs   int // that were begun
}

func follow(t *testing.T) *followed {
	f := &followed{t: t, stream: &memStream{}, path: filepath.Join(t.TempDir(), "log.csv")}
	f.cfg = testConfig(t, f.stream)
	f.start()
	return f
}

func (f *followed) start() {
	f.cfg.Follows = []Follow{{Node: "ast1", Path: f.path, Rows: &pairRows{begun: map[string]bool{}}}}
	f.bridge, f.stop = launch(f.t, f.cfg)
}

func (f *followed) write(rows string) {
	f.t.Helper()
	file, err := os.OpenFile(f.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		f.t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteString(rows); err != nil {
		f.t.Fatal(err)
	}
	// The bubble's time is not that of the disk.
	if err := os.Chtimes(f.path, time.Now(), time.Now()); err != nil {
		f.t.Fatal(err)
	}
}

// calls appends whole legs, whose rows overlap those of the calls before.
func (f *followed) calls(n int) {
	f.t.Helper()
	var b strings.Builder
	for range n {
		f.legs++
		fmt.Fprintf(&b, "begin %d\n", f.legs)
		if f.legs > 3 {
			fmt.Fprintf(&b, "end %d\n", f.legs-3)
		}
	}
	f.write(b.String())
}

// check waits a while and compares: every leg that ended is there, whole.
func (f *followed) check(what string) {
	f.t.Helper()
	time.Sleep(5 * time.Second)
	synctest.Wait()
	st := f.stream.stored()
	if len(st.legs) != max(0, f.legs-3) {
		f.t.Errorf("%s: %d legs, want %d", what, len(st.legs), f.legs-3)
	}
	for leg, r := range st.legs {
		if r.Start.IsZero() || r.End.IsZero() || r.Source != cdr.SourceFile || r.Node != "ast1" || r.ID != cdr.NewID("c1", "ast1", leg) {
			f.t.Errorf("%s: leg %s: %+v", what, leg, r)
		}
	}
}

func (f *followed) lost() float64 {
	return testutil.ToFloat64(f.bridge.metrics.followLost.WithLabelValues("ast1"))
}

func (f *followed) rename(from, to string) {
	f.t.Helper()
	if err := os.Rename(from, to); err != nil {
		f.t.Fatal(err)
	}
}

func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := follow(t)
		f.check("no file")
		f.calls(10)
		f.check("first rows")

		// What is written while nobody reads is read later, from where reading ended.
		f.stop()
		f.calls(10)
		f.stream.mu.Lock()
		before := len(f.stream.payloads)
		f.stream.mu.Unlock()
		f.start()
		f.check("after a restart")
		f.stream.mu.Lock()
		if n := len(f.stream.payloads) - before; n != 10 {
			t.Errorf("%d records after the restart, want 10", n)
		}
		f.stream.mu.Unlock()

		// A row that is only half there waits for its rest.
		f.legs++
		f.write(fmt.Sprintf("begin %d\nend %d", f.legs, f.legs-3))
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if _, early := f.stream.stored().legs[fmt.Sprint(f.legs-3)]; early {
			t.Error("half a row was taken")
		}
		f.write("\n")
		f.check("the rest of a row")

		f.rename(f.path, f.path+".1")
		f.check("renamed, nothing new yet")
		f.calls(7)
		f.check("renamed")
		if f.lost() != 0 {
			t.Errorf("%v lost", f.lost())
		}
		f.stop()
	})
}

// TestFollowRotatedAway: the file is rotated, more than once, while nobody reads, by
// renaming or by copying and truncating.
func TestFollowRotatedAway(t *testing.T) {
	for name, rotate := range map[string]func(f *followed, n int){
		"rename": func(f *followed, n int) {
			for ; n > 1; n-- {
				f.rename(fmt.Sprintf("%s.%d", f.path, n-1), fmt.Sprintf("%s.%d", f.path, n))
			}
			f.rename(f.path, f.path+".1")
		},
		"copytruncate": func(f *followed, n int) {
			b, err := os.ReadFile(f.path)
			if err != nil {
				f.t.Fatal(err)
			}
			copied := fmt.Sprintf("%s-2026112%d", f.path, n)
			if err := errors.Join(os.WriteFile(copied, b, 0o640), os.Chtimes(copied, time.Now(), time.Now()), os.Truncate(f.path, 0)); err != nil {
				f.t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := follow(t)
				f.calls(40)
				f.check("before")
				f.stop()
				f.calls(20)
				for n := range 3 {
					rotate(f, n+1)
					time.Sleep(time.Minute)
					f.calls(30)
				}
				f.start()
				f.check("after three rotations")
				rotate(f, 4)
				f.calls(5)
				f.check("after one more, heard")
				if f.lost() != 0 {
					t.Errorf("%v lost", f.lost())
				}
				f.stop()
			})
		})
	}
}

// TestFollowSaysWhatIsGone: a log that vanished before it was read is no
// silence.
func TestFollowSaysWhatIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := follow(t)
		f.calls(20)
		f.check("before")
		if err := os.Remove(f.path); err != nil {
			t.Fatal(err)
		}
		f.check("removed, nothing new yet")
		f.calls(20)
		f.check("after")
		if f.lost() != 1 {
			t.Errorf("%v lost, want 1", f.lost())
		}
		f.stop()
	})
}

// TestFollowKeepsWhatItCannotRead: what is no row is kept raw, and costs none of its
// neighbours.
func TestFollowKeepsWhatItCannotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := follow(t)
		f.calls(5)
		f.write("garbage\n" + strings.Repeat("x", followRow+followChunk) + "\n\n")
		f.calls(5)
		f.write("torn")
		f.check("live")
		f.rename(f.path, f.path+".1")
		f.calls(5)
		f.check("rotated")
		if st := f.stream.stored(); st.raw < 3 {
			t.Errorf("%d raw", st.raw)
		}
		if n := testutil.ToFloat64(f.bridge.metrics.cdrUndecoded.WithLabelValues("ast1", "file")); n < 3 {
			t.Errorf("%v undecoded", n)
		}
		f.stop()
	})
}

// TestFollowWaitsForTheStream: nothing counts as read that is not durable,
// even if the bridge ends before it is.
func TestFollowWaitsForTheStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := follow(t)
		f.calls(10)
		f.check("before")
		f.calls(10)
		time.Sleep(1500 * time.Millisecond) // read, but that is not noted yet
		synctest.Wait()
		f.stream.setFail(errors.New("disk full"))
		f.calls(10)
		time.Sleep(2 * time.Second)
		f.stop()
		f.stream.setFail(nil)
		f.start()
		f.check("after")
		f.stop()
		note, err := os.ReadFile(filepath.Join(f.cfg.Journal, "follow-ast1.json"))
		if err != nil || !bytes.Contains(note, []byte(`"offset"`)) {
			t.Errorf("%s, %v", note, err)
		}
		// A note that is damaged costs nothing but time.
		if err := os.WriteFile(filepath.Join(f.cfg.Journal, "follow-ast1.json"), note[:len(note)/2], 0o640); err != nil {
			t.Fatal(err)
		}
		f.calls(10)
		f.start()
		f.check("after damage")
		f.stop()
	})
}
