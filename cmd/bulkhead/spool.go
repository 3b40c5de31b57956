package main

import (
	"encoding/json"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/internal/spool"
)

type spoolCmd struct {
	Ls  spoolLsCmd  `cmd:"" help:"Show a spool's segments, and how far its readers are."`
	Cat spoolCatCmd `cmd:"" help:"Write a spool's records, one JSON object a line."`
}

type spoolLsCmd struct {
	Dir string `arg:"" help:"The spool: the folder spool of a data folder." type:"existingdir"`
}

func (c *spoolLsCmd) Run(a *app) error {
	s, err := spool.Look(c.Dir)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(a.out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "segment\tbytes\tstate")
	var total int64
	for _, g := range s.Segments {
		state := "ok"
		if g.Quarantined {
			state = "quarantined"
		}
		total += g.Bytes
		fmt.Fprintf(w, "%d\t%d\t%s\n", g.Number, g.Bytes, state)
	}
	fmt.Fprintf(w, "total\t%d\t%d segments\n\n", total, len(s.Segments))
	fmt.Fprintln(w, "reader\tacknowledged\tbytes behind\toldest unacknowledged\tage")
	for _, r := range s.Readers {
		at, oldest, age := r.Acked.String(), "-", "-"
		if r.Bad {
			at = "unreadable"
		}
		if !r.Oldest.IsZero() {
			oldest = r.Oldest.Format(time.RFC3339Nano)
			age = max(0, time.Since(r.Oldest)).Truncate(time.Millisecond).String()
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\n", r.Name, at, r.Behind, oldest, age)
	}
	if len(s.Readers) == 0 {
		fmt.Fprintln(w, "none: nothing is freed")
	}
	return w.Flush()
}

type spoolCatCmd struct {
	Dir  string `arg:"" help:"The spool: the folder spool of a data folder." type:"existingdir"`
	From string `help:"Begin at this position, as the column acknowledged and the field position have it." placeholder:"SEGMENT:OFFSET"`
}

// spooled is one line of spool cat.
type spooled struct {
	Position string          `json:"position"`
	Time     time.Time       `json:"time"`             // of the append
	Record   json.RawMessage `json:"record,omitempty"` // what was appended
	Base64   []byte          `json:"base64,omitempty"` // the same, if it is not JSON
}

func (c *spoolCatCmd) Run(a *app) error {
	var from spool.Position
	if c.From != "" {
		var err error
		if from, err = spool.ParsePosition(c.From); err != nil {
			return fmt.Errorf("--from: %w: %w", err, bulkhead.Invalid)
		}
	}
	enc := json.NewEncoder(a.out)
	enc.SetEscapeHTML(false)
	skipped, err := spool.ScanFrom(c.Dir, from, func(r spool.Record) error {
		line := spooled{Position: r.Position.String(), Time: r.Time}
		if json.Valid(r.Payload) {
			line.Record = r.Payload
		} else {
			line.Base64 = r.Payload
		}
		return enc.Encode(line)
	})
	if err != nil {
		return err
	}
	if skipped > 0 {
		fmt.Fprintf(a.err, "%d damaged bytes were passed over\n", skipped)
	}
	return nil
}
