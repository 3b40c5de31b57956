package kamailio

import (
	"context"
	"io"
	"net/http"
	"time"
)

const (
	// breakerEvery is the time between two looks at configsvc.
	breakerEvery = time.Second
	// breakerPatience is how long one look waits, half of what a worker would.
	breakerPatience = 500 * time.Millisecond
	// breakerTold is after how many looks Kamailio is told again: it may have
	// been restarted.
	breakerTold = 5
)

// KeepBreaker looks every second whether configsvc answers at route, a
// host:port, and tells Kamailio not to ask it while it does not, so that no
// worker waits in vain. It returns nil when ctx ends; Kamailio goes on as it
// was told last, and bounds by itself how many workers wait.
func (c *Client) KeepBreaker(ctx context.Context, route string) error {
	client := &http.Client{Timeout: breakerPatience, Transport: &http.Transport{MaxIdleConns: 1}}
	defer client.CloseIdleConnections()
	tick := time.NewTicker(breakerEvery)
	defer tick.Stop()
	told, was := 0, true
	for {
		may := alive(ctx, client, "http://"+route+"/kamailio/route")
		if ctx.Err() != nil {
			return nil
		}
		if may != was {
			c.log.Warn("whether configsvc answers about calls that the tables do not know", "route", route, "answers", may)
		}
		if told++; may != was || told >= breakerTold {
			if err := c.AskOnMiss(ctx, may); err != nil {
				c.log.Debug("kamailio was not told whether to ask configsvc", "error", err)
			} else {
				told, was = 0, may
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// alive reports whether anything is said that is no failure: without
// credentials and question that is a refusal.
func alive(ctx context.Context, client *http.Client, url string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return false
	}
	resp, err := client.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 4096))
	return resp.StatusCode < 500
}
