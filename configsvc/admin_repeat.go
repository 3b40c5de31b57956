package configsvc

import (
	"crypto/sha256"
	"encoding/json"
	"net/http"
	"regexp"
	"sync"
	"time"
)

// Answers to requests with an Idempotency-Key are kept so long, so many at
// most, each of at most so many bytes.
const (
	repeatTime  = 24 * time.Hour
	maxRepeats  = 1024
	repeatBytes = 16 << 10
)

var repeatKey = regexp.MustCompile(`^[!-~]{1,128}$`)

// repeats remembers the answers to writes, so that one that is sent again,
// because its answer got lost, gets that answer and is not made again. It
// forgets them when the program ends: the same objects applied again are then
// found to be there.
type repeats struct {
	mu    sync.Mutex
	known map[string]repeated
	order []string // oldest first
}

type repeated struct {
	sum    [sha256.Size]byte // of the request
	answer *answer
	until  time.Time
}

func newRepeats() *repeats { return &repeats{known: map[string]repeated{}} }

// begin returns the kept answer to a request, or else the function to which
// its answer must be given, nil when it failed. Bulk requests run one at a
// time, so none is under way with the same key.
func (m *repeats) begin(r *http.Request, p *principal, body []byte, dry bool) (finish func(*answer), again *answer, err error) {
	nothing := func(*answer) {}
	key := r.Header.Get("Idempotency-Key")
	switch {
	case len(r.Header.Values("Idempotency-Key")) == 0 || dry:
		return nothing, nil, nil
	case !repeatKey.MatchString(key):
		return nil, nil, errBadRequest("Idempotency-Key is not 1 to 128 printable characters without spaces")
	}
	key = p.id + " " + r.URL.Path + " " + key
	h := sha256.New()
	for _, part := range []string{r.URL.RawQuery, r.Header.Get("Content-Type"), r.Header.Get("If-Match"), string(body)} {
		sum := sha256.Sum256([]byte(part))
		h.Write(sum[:]) // never fails
	}
	sum := [sha256.Size]byte(h.Sum(nil))
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	if old, ok := m.known[key]; ok && now.Before(old.until) {
		if old.sum != sum {
			return nil, nil, newProblem(http.StatusUnprocessableEntity, "key-reused", "the Idempotency-Key was used for another request: take a new one")
		}
		return nil, old.answer, nil
	}
	return func(x *answer) { m.keep(key, repeated{sum, x, now.Add(repeatTime)}) }, nil, nil
}

func (m *repeats) keep(key string, e repeated) {
	if e.answer == nil {
		return
	}
	x := *e.answer
	if done, ok := x.body.(applied); ok {
		if body, err := json.Marshal(done); err != nil || len(body) > repeatBytes {
			done.changed = changed{Truncated: true}
			x.body = done
		}
	}
	x.note = "sent again"
	e.answer = &x
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, again := m.known[key]; !again {
		m.order = append(m.order, key)
	}
	m.known[key] = e
	if len(m.order) > maxRepeats {
		delete(m.known, m.order[0])
		m.order = append([]string(nil), m.order[1:]...)
	}
}
