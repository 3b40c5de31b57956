// Command bench measures what Bulkhead claims. It prints one line a figure:
//
//	bench <name> <value> <unit> ratio=<r> bar=<op><b> ok|short
//
// Every claim of speed is a ratio of two things measured side by side in one
// run, in turn, each by the median of its runs.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
)

// figure is one line of the output.
type figure struct {
	name  string
	value float64
	unit  string
	ratio float64 // 0: none
	bar   bar
}

// bar is what a ratio must reach. The zero bar is none.
type bar struct {
	op    string // ">=" or "<="
	value float64
}

func (b bar) met(ratio float64) bool {
	switch b.op {
	case ">=":
		return ratio >= b.value
	case "<=":
		return ratio <= b.value
	}
	return true
}

func (f figure) String() string {
	ratio, limit, verdict := "-", "-", "ok"
	if f.ratio != 0 {
		ratio = strconv.FormatFloat(f.ratio, 'f', 3, 64)
	}
	if f.bar.op != "" {
		limit = f.bar.op + strconv.FormatFloat(f.bar.value, 'f', 2, 64)
	}
	if !f.bar.met(f.ratio) {
		verdict = "short"
	}
	return fmt.Sprintf("bench %s %s %s ratio=%s bar=%s %s", f.name, strconv.FormatFloat(f.value, 'f', 1, 64), f.unit, ratio, limit, verdict)
}

// benchmark is one thing that can be measured by name, in under a minute if
// nothing else is said of it.
type benchmark struct {
	name string
	run  func(context.Context) ([]figure, error)
}

var all = []benchmark{
	{"route_decide", routeDecide},
	{"xml_dialplan", xmlDialplan},
	{"xml_dialplan_new_tcp", xmlNewTCP},
	{"xml_dialplan_flat", xmlFlat},
	{"mod_curl", modCurl},
	{"config_fair", configFair},
	{"allocs_per_answer", allocsPerAnswer},
	{"realtime_single", realtimeSingle},
	{"apply_one", applyOne},
	{"cold_start", coldStart},
	{"lookup_source", lookupSource},
	{"feed_visible_p99", feedVisible},
	{"esl_decode", eslDecode},
	{"ack", ack},
	{"enqueue", enqueue},
	{"end_to_end", endToEnd},
	{"setup_stalled", setupStalled},
	{"kpi_query", kpiQuery},
	{"kamailio_route", kamailioRoute},
	{"push_full", pushFull},
	{"invite_cpu_flat", inviteCPUFlat},
	{"invite_cpu_vs_regex", inviteCPUVsRegex},
	{"invite_cpu_vs_floor", inviteCPUVsFloor},
	{"profiles_apart", profilesApart},
	{"overload_moved", overloadMoved},
	{"node_loss", nodeLoss}, // takes three to five minutes
}

func main() {
	if text := os.Getenv(nodeEnv); text != "" {
		if err := runNode(text); err != nil {
			fmt.Fprintln(os.Stderr, "bench: media node:", err)
			os.Exit(1)
		}
		return
	}
	if text := os.Getenv(stormEnv); text != "" {
		if err := runStorm(text); err != nil {
			fmt.Fprintln(os.Stderr, "bench: storm:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1) //nolint:gocritic // stop was called
	}
}

func run(ctx context.Context, names []string, out io.Writer) error {
	for _, name := range names {
		if !slices.ContainsFunc(all, func(b benchmark) bool { return b.name == name }) {
			var known []string
			for _, b := range all {
				known = append(known, b.name)
			}
			return fmt.Errorf("there is no benchmark %q: there are %s", name, strings.Join(known, ", "))
		}
	}
	for _, b := range all {
		if len(names) > 0 && !slices.Contains(names, b.name) {
			continue
		}
		figures, err := b.run(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", b.name, err)
		}
		for _, f := range figures {
			fmt.Fprintln(out, f)
		}
	}
	return nil
}

// median returns the middle value; v is sorted in place.
func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}
