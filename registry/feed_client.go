package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulkhead-voip/bulkhead"
)

// RemoteOptions say where a feed is.
type RemoteOptions struct {
	// URLs are those of the servers, such as https://config.example:8081,
	// without FeedPath: the first that answers is followed, and when it ends
	// the next.
	URLs  []string
	Token string // secret of a token that opens the feed
	// Keyring gets the keys that the feed tells of; nil: nobody does.
	Keyring *Keyring
	Client  *http.Client // without a timeout; nil: http.DefaultTransport's settings, of its own
	Log     *slog.Logger // nil: nothing is said
	// Metrics takes bulkhead_registry_feed_connected and _connects_total; nil: nobody does.
	Metrics prometheus.Registerer
}

// Remote is a Store for one Follower that is fed over HTTP. It commits
// nothing. It holds the newest state in memory while Run runs; when the feed
// breaks it answers bulkhead.Unavailable until the feed is there again, and
// then goes on from the changes that were missed, or, if there were too many,
// from a new snapshot.
type Remote struct {
	o        RemoteOptions
	urls     []*url.URL
	client   *http.Client
	log      *slog.Logger
	connects prometheus.Counter

	mu     sync.Mutex
	base   position // a state that was the newest
	recent []stored // what came since, the newest last
	size   int      // revisions of recent that are not in base
	at     mark
	jumps  int // snapshots that came
	served int // jumps when Head was last asked
	err    error
	said   string // the error that Head or Watch last returned
	heard  time.Time
	wake   chan struct{} // closed, and replaced, when any of this changes
}

// remoteKept is how many revisions a Remote keeps for its Follower, which
// otherwise starts anew from the head.
const remoteKept = 256

// maxProblem is how much is read of an answer that is no feed.
const maxProblem = 4 << 10

var errNoFeed = errors.New("the feed is not connected yet")

// NewRemote returns a Remote that connects when it runs. It returns
// bulkhead.Invalid when there is no URL, or one that is none.
func NewRemote(o RemoteOptions) (*Remote, error) {
	var urls []*url.URL
	for _, text := range o.URLs {
		u, err := url.Parse(text)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return nil, fmt.Errorf("the feed's address %q: %w: write http://HOST:PORT or https://HOST:PORT", text, bulkhead.Invalid)
		}
		urls = append(urls, u.JoinPath(FeedPath))
	}
	if len(urls) == 0 {
		return nil, fmt.Errorf("the feed has no address: %w", bulkhead.Invalid)
	}
	r := &Remote{
		o: o, urls: urls, client: o.Client, log: o.Log, err: errNoFeed, wake: make(chan struct{}),
		connects: counter("bulkhead_registry_feed_connects_total", "Times that the feed was connected."),
	}
	if r.client == nil {
		r.client = &http.Client{Transport: http.DefaultTransport.(*http.Transport).Clone()}
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	return r, register(o.Metrics, r.connects, boolGauge("bulkhead_registry_feed_connected", "1 while the feed is connected.", func() bool {
		return r.Status().Connected
	}))
}

// RemoteStatus is what a Remote knows of its feed.
type RemoteStatus struct {
	Connected bool                    `json:"connected"`
	Revision  bulkhead.RevisionNumber `json:"revision"`
	Heard     time.Time               `json:"heard,omitzero"`  // when the feed last said something
	Err       string                  `json:"error,omitempty"` // why it is not connected
}

// Status returns the present status.
func (r *Remote) Status() RemoteStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := RemoteStatus{Connected: r.err == nil, Revision: r.at.number, Heard: r.heard}
	if r.err != nil {
		s.Err = r.err.Error()
	}
	return s
}

// Run keeps the feed connected until ctx ends and returns nil then. A feed
// that says nothing for 10 s is taken for dead.
func (r *Remote) Run(ctx context.Context) error {
	defer r.client.CloseIdleConnections()
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = minPause, maxPause
	for i := 0; ; i++ {
		err := r.connect(ctx, r.urls[i%len(r.urls)], pause.Reset)
		if ctx.Err() != nil {
			r.lost(fmt.Errorf("the feed has ended: %w", bulkhead.Unavailable))
			return nil
		}
		r.lost(err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause.NextBackOff()):
		}
	}
}

func (r *Remote) lost(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
	if errors.Is(err, bulkhead.Invalid) {
		r.at.line = "" // it must not go on from here
	}
	r.wakeAll()
}

// connect reads one connection until it fails.
func (r *Remote) connect(ctx context.Context, server *url.URL, done func()) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(feedSilence, func() {
		cancel(fmt.Errorf("the feed said nothing for %v", feedSilence))
	})
	defer silence.Stop()
	at := r.mark()
	body, err := r.open(ctx, server, at)
	if err == nil {
		defer func() { _ = body.Close() }() // it was only read
		err = r.read(heardReader{body, silence}, at, done)
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if !errors.Is(err, bulkhead.Denied) && !errors.Is(err, bulkhead.Invalid) && !errors.Is(err, bulkhead.Unavailable) {
		err = fmt.Errorf("%w: %w", bulkhead.Unavailable, err)
	}
	return fmt.Errorf("follow the feed of %s: %w", server.Host, err)
}

func (r *Remote) open(ctx context.Context, server *url.URL, at mark) (io.ReadCloser, error) {
	u := *server
	if at.line != "" {
		u.RawQuery = url.Values{"after": {strconv.FormatUint(uint64(at.number), 10)}, "line": {string(at.line)}}.Encode()
	}
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	q.Header.Set("Authorization", "Bearer "+r.o.Token)
	answer, err := r.client.Do(q)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode == http.StatusOK {
		return answer.Body, nil
	}
	var why feedProblem
	_ = json.NewDecoder(io.LimitReader(answer.Body, maxProblem)).Decode(&why) // it may be somebody else's page
	_ = answer.Body.Close()
	if answer.StatusCode == http.StatusUnauthorized && why.Type == typeRevoked && r.o.Keyring != nil {
		r.o.Keyring.revoke(r.o.Token)
	}
	kind := bulkhead.Unavailable
	if answer.StatusCode == http.StatusUnauthorized || answer.StatusCode == http.StatusForbidden {
		kind = bulkhead.Denied
	}
	if why.Detail != "" {
		return nil, fmt.Errorf("it answered %s, %.200q: %w", answer.Status, why.Detail, kind)
	}
	return nil, fmt.Errorf("it answered %s: %w", answer.Status, kind)
}

// heardReader puts the silence off with every byte.
type heardReader struct {
	io.Reader
	silence *time.Timer
}

func (h heardReader) Read(p []byte) (int, error) {
	n, err := h.Reader.Read(p)
	if n > 0 {
		h.silence.Reset(feedSilence)
	}
	return n, err
}

func (r *Remote) read(body io.Reader, at mark, done func()) error {
	feed := newFeedReader(body, at)
	for first := true; ; first = false {
		event, err := feed.next()
		if err != nil {
			return err
		}
		if first {
			r.connects.Inc()
			done()
		}
		r.take(event)
	}
}

// take makes what the feed said the newest state.
func (r *Remote) take(e feedEvent) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.heard = time.Now()
	changed := r.err != nil
	r.err, r.said = nil, ""
	switch {
	case e.keys != nil:
		if r.o.Keyring != nil {
			r.o.Keyring.told(r.o.Token, *e.keys)
		}
	case e.snapshot != nil:
		changed = true
		r.jumps++
		r.base, r.recent, r.size = *e.snapshot, nil, 0
		r.at = mark{r.base.state.Revision, r.base.line}
	case e.revision != nil:
		changed = true
		r.recent = append(r.recent, *e.revision)
		r.size++
		r.at = mark{e.revision.Number, e.line}
		if len(r.recent) > 2*remoteKept {
			r.state()
			r.recent = append([]stored(nil), r.recent[len(r.recent)-remoteKept:]...)
		}
	}
	if changed {
		r.wakeAll()
	}
}

// state returns the newest state. r.mu must be held.
func (r *Remote) state() bulkhead.State {
	if r.size > 0 {
		c := mergeStored(r.recent[len(r.recent)-r.size:])
		r.base = position{r.base.state.Apply(&c), r.at.line}
		r.base.state.Revision = r.at.number
		r.size = 0
	}
	return r.base.state
}

func (r *Remote) mark() mark {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.at
}

func (r *Remote) wakeAll() {
	close(r.wake)
	r.wake = make(chan struct{})
}

// Head implements Store. It returns why the feed is not connected once, and
// then waits until it is, or until there is another reason.
func (r *Remote) Head(ctx context.Context) (bulkhead.State, error) {
	for {
		state, wake, err := r.newest()
		if wake == nil {
			return state, err
		}
		if err := wait(ctx, wake); err != nil {
			return bulkhead.State{}, err
		}
	}
}

func (r *Remote) newest() (bulkhead.State, <-chan struct{}, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.err == nil:
		r.served = r.jumps
		return r.state(), nil, nil
	case errors.Is(r.err, errNoFeed), r.err.Error() == r.said:
		return bulkhead.State{}, r.wake, nil
	}
	r.said = r.err.Error()
	return bulkhead.State{}, nil, r.err
}

// Watch implements Store.
func (r *Remote) Watch(ctx context.Context, after bulkhead.RevisionNumber) ([]bulkhead.Revision, error) {
	for {
		r.mu.Lock()
		out, err := r.since(after)
		wake := r.wake
		r.mu.Unlock()
		if len(out) > 0 || err != nil {
			return out, err
		}
		if err := wait(ctx, wake); err != nil {
			return nil, err
		}
	}
}

func (r *Remote) since(after bulkhead.RevisionNumber) ([]bulkhead.Revision, error) {
	if r.err != nil && !errors.Is(r.err, errNoFeed) {
		r.said = r.err.Error()
		return nil, r.err
	}
	behind := int64(r.at.number) - int64(after)
	if behind < 0 || behind > int64(len(r.recent)) || r.served != r.jumps {
		return nil, noPath(after, r.at.number)
	}
	var out []bulkhead.Revision
	for _, s := range r.recent[len(r.recent)-int(behind):] {
		out = append(out, s.Revision)
	}
	return out, nil
}

func wait(ctx context.Context, wake <-chan struct{}) error {
	select {
	case <-ctx.Done():
		return fmt.Errorf("wait for the feed: %w", ctx.Err())
	case <-wake:
		return nil
	}
}

// Commit implements Store: it returns bulkhead.Denied.
func (r *Remote) Commit(context.Context, bulkhead.RevisionNumber, bulkhead.Revision) (bulkhead.Revision, error) {
	return bulkhead.Revision{}, fmt.Errorf("commit through the feed: %w: it is read only; use the admin API", bulkhead.Denied)
}
