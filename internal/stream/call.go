package stream

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"
)

// answer is what a script returned.
type answer []any

func (a answer) text(i int) string {
	if i < len(a) {
		if s, ok := a[i].(string); ok {
			return s
		}
	}
	return ""
}

func (a answer) number(i int) int64 {
	if i < len(a) {
		if n, ok := a[i].(int64); ok {
			return n
		}
	}
	return 0
}

func (f *Forwarder) call(ctx context.Context, s *redis.Script, keys []string, args ...any) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	v, err := s.Run(ctx, f.cfg.Client, keys, args...).Result()
	if err != nil {
		return nil, explain(err)
	}
	a, ok := v.([]any)
	if !ok {
		return nil, fmt.Errorf("unexpected answer of Redis: %v", v)
	}
	return a, nil
}

// ErrDenied means that Redis answers and refuses us: waiting does not mend it.
var ErrDenied = errors.New("the Redis server refuses us: look at the user in --redis, and at --redis-password-file or BULKHEAD_REDIS_PASSWORD; the user needs the keys of the stream and the commands of streams, hashes and scripts")

// explain adds ErrDenied to an error by which Redis refuses the user, its
// password or a permission. Other errors it returns as they are.
func explain(err error) error {
	if err == nil || errors.Is(err, ErrDenied) {
		return err
	}
	for _, refusal := range []string{"NOAUTH ", "WRONGPASS ", "NOPERM ", "DENIED ", "ERR AUTH "} {
		if strings.Contains(err.Error(), refusal) {
			return fmt.Errorf("%w: %w", ErrDenied, err)
		}
	}
	return err
}
