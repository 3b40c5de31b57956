package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/bulkhead-voip/bulkhead/kamailio"
)

// pushFull times how long it takes until a Kamailio with empty tables has
// those of 10,000 tenants, and has been read back to have them.
func pushFull(ctx context.Context) (_ []figure, err error) {
	const n, runs = 10_000, 3
	tables, err := sbcTables(n, "127.0.0.1:9")
	if err != nil {
		return nil, err
	}
	var seconds []float64
	for range runs {
		s, err := startSBC(ctx, "", "", noPings, kamailio.Memory(len(tables.Rows)))
		if err != nil {
			return nil, err
		}
		start := time.Now()
		err = s.client.Apply(ctx, tables)
		var differences []string
		if err == nil {
			differences, err = s.client.Verify(ctx, tables)
		}
		seconds = append(seconds, time.Since(start).Seconds())
		if err = errors.Join(err, s.stop()); err != nil {
			return nil, err
		}
		if len(differences) > 0 {
			return nil, fmt.Errorf("what Kamailio has differs from what was pushed: %q", differences)
		}
	}
	return []figure{{name: "push_full", value: median(seconds), unit: fmt.Sprintf("s/%d_rows", len(tables.Rows))}}, nil
}
