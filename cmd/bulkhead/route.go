package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/configsvc"
	"github.com/bulkhead-voip/bulkhead/registry"
)

type routeCmd struct {
	Explain routeExplainCmd `cmd:"" help:"Say what would be done with a call, and why."`
}

type routeExplainCmd struct {
	toolFlags `embed:""`

	Tenant string `help:"The tenant whose call it is. Without it, --domain and --source say whose." placeholder:"ID"`
	From   string `help:"Extension of a user, who then counts as proved, or a number." placeholder:"EXT|NUMBER"`
	To     string `help:"What is dialled." required:"" placeholder:"NUMBER"`
	Domain string `help:"Host of the Request-URI." placeholder:"NAME"`
	Source string `help:"Address that the INVITE comes from." placeholder:"IP"`
	SBC    string `name:"sbc" help:"Where the call comes in. Default: the first SBC of the cell." placeholder:"ID"`
	Node   string `help:"The node that asks, without an SBC." placeholder:"ID"`
	Time   string `help:"When: RFC 3339. Default: now." placeholder:"TIME"`
	CallID string `name:"call-id" help:"Draws among trunks of one priority." placeholder:"TEXT"`

	Revision *uint64 `help:"In the state of that revision. Default: the newest." placeholder:"N"`
	Change   string  `help:"As if this file were applied, which it is not." type:"path" placeholder:"FILE.yaml"`
	JSON     bool    `help:"As one JSON object." name:"json"`
}

func (c *routeExplainCmd) Run(ctx context.Context, a *app) error {
	s, err := c.state(ctx)
	if err != nil {
		return err
	}
	x, err := configsvc.Explain(s, configsvc.RouteQuestion{
		Tenant: bulkhead.TenantID(c.Tenant), From: c.From, To: c.To, Domain: c.Domain, Source: c.Source,
		SBC: bulkhead.SBCID(c.SBC), Node: bulkhead.NodeID(c.Node), Time: c.Time, CallID: c.CallID,
	}, time.Now())
	if err != nil {
		return err
	}
	if c.JSON {
		return json.NewEncoder(a.out).Encode(x)
	}
	printExplanation(a.out, &x)
	return nil
}

// state returns the state that is asked about.
func (c *routeExplainCmd) state(ctx context.Context) (bulkhead.State, error) {
	store, err := c.registry(ctx)
	if err != nil {
		return bulkhead.State{}, err
	}
	defer store.Close()
	var s bulkhead.State
	if c.Revision != nil {
		s, err = store.State(ctx, bulkhead.RevisionNumber(*c.Revision))
	} else {
		s, err = store.Head(ctx)
	}
	if err != nil || c.Change == "" {
		return s, err
	}
	f, err := registry.ReadFile(c.Change)
	if err != nil {
		return s, err
	}
	change, err := f.Plan(s, false)
	if err != nil {
		return s, err
	}
	return s.Apply(&change), nil
}

func printExplanation(w io.Writer, x *configsvc.Explanation) {
	for _, line := range x.Why {
		fmt.Fprintln(w, printable(line))
	}
	fmt.Fprintf(w, "\nrevision %d, tenant %q, pool %q, managed %v\n", x.Revision, x.Tenant, x.Pool, x.Managed)
	for _, f := range []struct {
		is   bool
		text string
	}{
		{x.Emergency, "emergency: no limit holds"}, {x.Record, "recorded"}, {x.Tap, "to the AI tap"},
		{x.MaxDuration > 0, fmt.Sprintf("at most %d s", x.MaxDuration)}, {len(x.Codecs) > 0, "codecs " + strings.Join(x.Codecs, " ")},
	} {
		if f.is {
			fmt.Fprintln(w, f.text)
		}
	}
	printSteps(w, x.Actions, "")
}

func printSteps(w io.Writer, list []configsvc.PlanStep, indent string) {
	for i := range list {
		s := &list[i]
		fmt.Fprintf(w, "%s%s%s\n", indent, s.Do, stepDetails(s))
		in := indent + "  "
		printSteps(w, s.Legs, in)
		for _, after := range []struct {
			when string
			list []configsvc.PlanStep
		}{{"busy", s.Busy}, {"no answer", s.NoAnswer}, {"unavailable", s.Unavailable}, {"otherwise", s.Otherwise}} {
			if len(after.list) > 0 {
				fmt.Fprintf(w, "%s%s:\n", in, after.when)
				printSteps(w, after.list, in+"  ")
			}
		}
	}
}

func stepDetails(s *configsvc.PlanStep) string {
	var b strings.Builder
	add := func(is bool, format string, args ...any) {
		if is {
			fmt.Fprintf(&b, " "+format, args...)
		}
	}
	add(s.Name != "", "%s", s.Name)
	add(s.Number != "", "number %s", s.Number)
	add(s.CallerID != "", "as %s", s.CallerID)
	add(s.Anonymous, "anonymous")
	add(s.Status != 0, "%d (cause %d): %s", s.Status, s.Cause, s.Reason)
	add(s.Sequential, "one after the other")
	add(s.Timeout != 0, "for %d s", s.Timeout)
	add(len(s.Causes) > 0, "next on cause %v", s.Causes)
	return b.String()
}
