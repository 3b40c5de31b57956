package eventbridge

import (
	"slices"
	"strconv"
	"testing"

	"github.com/bulkhead-voip/bulkhead/cdr"
)

func queueOf(n int) *feed {
	f := &feed{wake: make(chan struct{}, 1), maxEvents: 1 << 20, maxBytes: 1 << 30}
	for i := range n {
		f.push(numbered(i))
	}
	return f
}

func numbered(i int) item {
	return item{event: cdr.Event{Record: cdr.Record{Leg: strconv.Itoa(i)}}, size: 1}
}

// next does as step does: it takes up to n items, gives them back and returns their numbers.
func next(f *feed, n int) []string {
	items, whole := f.take(n)
	if len(items) == 0 {
		return nil
	}
	var out []string
	for i := range items {
		out = append(out, items[i].event.Record.Leg)
	}
	f.giveBack(items, whole)
	return out
}

// TestBacklogIsNotKept: the memory of a long queue is free once it is empty,
// also if its end was small, and the small queues after it share two arrays.
func TestBacklogIsNotKept(t *testing.T) {
	f := queueOf(5000)
	for len(f.queue) < cap(f.queue) {
		f.push(numbered(0))
	}
	backlog := map[*item]bool{}
	for i := range f.queue {
		backlog[&f.queue[i]] = true
	}
	within := func(part []item) bool { return cap(part) > 0 && backlog[&part[:1][0]] }
	for len(f.queue) > 0 {
		next(f, 300)
	}
	arrays := map[*item]bool{}
	for i := range 1000 {
		f.push(numbered(-1))
		arrays[&f.queue[0]] = true
		items, whole := f.take(300)
		f.push(numbered(i)) // while the other is worked on
		arrays[&f.queue[0]] = true
		f.giveBack(items, whole)
		if got := next(f, 300); !slices.Equal(got, []string{strconv.Itoa(i)}) {
			t.Fatalf("took %q, want %d", got, i)
		}
		next(f, 300) // finds nothing
		if within(f.queue) || within(f.spare) || cap(f.queue)+cap(f.spare) > spareItems {
			t.Fatalf("step %d: room for %d and %d items is kept, of the backlog: %t, %t", i, cap(f.queue), cap(f.spare), within(f.queue), within(f.spare))
		}
	}
	if len(arrays) > 2 {
		t.Errorf("%d arrays for 2000 queues of one item", len(arrays))
	}
}

// TestPartTaken: who has the first part of a queue, or has given it back, does
// not disturb the rest.
func TestPartTaken(t *testing.T) {
	f := queueOf(20)
	part, whole := f.take(10)
	f.giveBack(append(part, numbered(-1)), whole)
	rest, whole := f.take(20)
	for i := 20; i < 40; i++ {
		f.push(numbered(i))
	}
	check := func(items []item, first int) {
		t.Helper()
		for i := range items {
			if got := items[i].event.Record.Leg; got != strconv.Itoa(first+i) {
				t.Errorf("item %d is %q", first+i, got)
			}
		}
	}
	check(rest, 10)
	f.giveBack(rest, whole)
	last, _ := f.take(20)
	check(last, 20)
	if len(part) != 10 || len(rest) != 10 || len(last) != 20 {
		t.Errorf("took %d, %d and %d", len(part), len(rest), len(last))
	}
}
