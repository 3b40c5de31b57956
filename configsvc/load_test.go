package configsvc

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead"
)

// counts is a PBX whose answer can be changed.
type counts struct{ broken atomic.Bool }

func (c *counts) Count(context.Context) (bulkhead.PBXLoad, error) {
	if c.broken.Load() {
		return bulkhead.PBXLoad{}, errors.New("connection refused")
	}
	return bulkhead.PBXLoad{Sessions: 7, MaxSessions: 200, Rate: 1, MaxRate: 30}, nil
}

func TestLoad(t *testing.T) {
	pbx := &counts{}
	l := NewLoad("fs1", func() int { return 0 }, pbx, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	h := l.Handler(func(id, password string) bool { return id == "sbc1" && password == "right" })
	ask := func(from, user, password string) (int, bulkhead.NodeLoad) {
		r := httptest.NewRequest(http.MethodGet, "/load", nil)
		r.RemoteAddr = from
		if user != "" {
			r.SetBasicAuth(user, password)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		var got bulkhead.NodeLoad
		if w.Code == http.StatusOK {
			if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
				t.Fatal(err)
			}
		}
		return w.Code, got
	}
	until := func(what string, ok func(bulkhead.NodeLoad) bool) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); ; <-time.After(20 * time.Millisecond) {
			status, got := ask("127.0.0.1:4711", "", "")
			if status == http.StatusOK && ok(got) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: the answer is %d %+v", what, status, got)
			}
		}
	}
	until("the load of this host", func(n bulkhead.NodeLoad) bool {
		return n.Node == "fs1" && time.Since(n.Time) < time.Minute && n.CPU >= 0 && n.CPU <= 1 && n.PBX != nil && n.PBX.Sessions == 7
	})
	for _, tt := range []struct {
		from, user, password string
		want                 int
	}{
		{"192.0.2.1:1", "", "", http.StatusUnauthorized}, {"192.0.2.1:1", "sbc1", "wrong", http.StatusUnauthorized},
		{"192.0.2.1:1", "sbc1", "right", http.StatusOK}, {"[::1]:1", "", "", http.StatusOK}, {"nowhere", "", "", http.StatusUnauthorized},
	} {
		if got, _ := ask(tt.from, tt.user, tt.password); got != tt.want {
			t.Errorf("%+v is answered with %d", tt, got)
		}
	}
	pbx.broken.Store(true)
	until("a PBX that is gone", func(n bulkhead.NodeLoad) bool { return n.PBX == nil && n.PBXError == "connection refused" })
	pbx.broken.Store(false)
	until("a PBX that is back", func(n bulkhead.NodeLoad) bool { return n.PBX != nil && n.PBXError == "" })
}
