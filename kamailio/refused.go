package kamailio

import (
	"context"
	"errors"
	"fmt"

	"github.com/bulkhead-voip/bulkhead"
)

// refusedTable counts, by ip:port of a node, the calls that it did not take and
// another node did.
const refusedTable = "bulkhead_refused"

// Refused returns, for each node by its ip:port, how many calls it refused with
// a 5xx or did not answer at all, and another node then took: since Kamailio
// started, or since an hour passed without one. A Kamailio whose bulkhead.cfg is
// too old to count is of kind bulkhead.NotFound.
func (c *Client) Refused(ctx context.Context) (map[string]int, error) {
	rows, err := c.dump(ctx, refusedTable)
	if err != nil {
		if e := (*RPCError)(nil); errors.As(err, &e) {
			err = fmt.Errorf("%w: %w", bulkhead.NotFound, err)
		}
		return nil, fmt.Errorf("calls that nodes did not take: %w", err)
	}
	out := map[string]int{}
	for node, v := range rows {
		if n, ok := v.(float64); ok {
			out[node] = int(n)
		}
	}
	return out, nil
}
