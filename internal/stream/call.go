package stream

import (
	"context"
	"fmt"

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
		return nil, err
	}
	a, ok := v.([]any)
	if !ok {
		return nil, fmt.Errorf("unexpected answer of Redis: %v", v)
	}
	return a, nil
}
