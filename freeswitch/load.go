package freeswitch

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/bulkhead-voip/bulkhead"
)

// Counter asks a switch for its counts over a connection of its own, which it
// makes when it needs one. It is for one goroutine.
type Counter struct {
	cfg  Config
	conn *Conn
}

// NewCounter returns a Counter. Close must be called.
func NewCounter(cfg Config) *Counter { return &Counter{cfg: cfg} }

// statusCommand is answered as capture esl/json-bgapi.txt shows.
const statusCommand = `json {"command":"status","data":{}}`

// Count returns the switch's sessions and limits. Errors are as those of Dial
// and Conn.API; the next Count connects anew.
func (c *Counter) Count(ctx context.Context) (bulkhead.PBXLoad, error) {
	if c.conn == nil {
		conn, err := Dial(ctx, c.cfg)
		if err != nil {
			return bulkhead.PBXLoad{}, err
		}
		c.conn = conn
	}
	text, err := c.conn.API(ctx, statusCommand)
	if err != nil {
		_ = c.Close() // it is given up anyway
		return bulkhead.PBXLoad{}, err
	}
	return parseStatus(text)
}

// Close ends the connection.
func (c *Counter) Close() error {
	if c.conn == nil {
		return nil
	}
	conn := c.conn
	c.conn = nil
	return conn.Close()
}

func parseStatus(text string) (bulkhead.PBXLoad, error) {
	var a struct {
		Status   string `json:"status"`
		Response struct {
			Sessions struct {
				Count struct {
					Active int `json:"active"`
					Limit  int `json:"limit"`
				} `json:"count"`
				Rate struct {
					Current float64 `json:"current"`
					Max     float64 `json:"max"`
				} `json:"rate"`
			} `json:"sessions"`
		} `json:"response"`
	}
	if err := json.Unmarshal([]byte(text), &a); err != nil {
		return bulkhead.PBXLoad{}, fmt.Errorf("status of the switch is %q: %w: %w", clip(text), bulkhead.Invalid, err)
	}
	s := a.Response.Sessions
	if a.Status != "success" || s.Count.Active < 0 || s.Count.Limit < 0 || s.Rate.Max < 0 {
		return bulkhead.PBXLoad{}, fmt.Errorf("status of the switch is %q: %w", clip(text), bulkhead.Invalid)
	}
	return bulkhead.PBXLoad{Sessions: s.Count.Active, MaxSessions: s.Count.Limit, Rate: s.Rate.Current, MaxRate: s.Rate.Max}, nil
}
