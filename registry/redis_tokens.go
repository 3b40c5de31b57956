package registry

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/bulkhead-voip/bulkhead"
)

// Tokens returns the tokens that this Redis holds.
func (s *Redis) Tokens() *Tokens { return s.keys }

// Audit returns the audit log that this Redis holds.
func (s *Redis) Audit() *Audit { return &Audit{s} }

// A token is a field of the hash "tokens" that is written once. When it was
// last used and when it was revoked stand in two hashes of their own. Whoever
// changes which tokens are good counts "tokens_version" up.

const addTokenScript = `
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
if ARGV[3] ~= '0' then redis.call('HSET', KEYS[2], ARGV[1], ARGV[3]) end
if ARGV[4] ~= '0' then redis.call('HSET', KEYS[3], ARGV[1], ARGV[4]) end
return redis.call('INCR', KEYS[4])`

// tokenKeys are those of the scripts here.
func (s *Redis) tokenKeys() []string {
	return []string{s.key("tokens"), s.key("tokens_used"), s.key("tokens_revoked"), s.key("tokens_version")}
}

// change runs a script that changes tokens or the audit log.
func (s *Redis) change(ctx context.Context, doing, script string, keys []string, args ...any) (any, error) {
	answer, copied, err := s.write(ctx, script, keys, args...)
	return answer, s.failed(ctx, doing, errors.Join(err, copied))
}

func (s *Redis) addToken(ctx context.Context, t *tokenRow) error {
	text, err := json.Marshal(t)
	if err != nil {
		return fmt.Errorf("encode a token: %w: %w", bulkhead.Invalid, err)
	}
	_, err = s.change(ctx, "store a token", addTokenScript, s.tokenKeys(), t.ID, text, micros(t.LastUsed), micros(t.Revoked))
	return err
}

// readToken puts together what the three hashes say.
func readToken(id, text, used, revoked string) (*tokenRow, error) {
	var t tokenRow
	if err := decode([]byte(text), &t); err != nil {
		return nil, fmt.Errorf("read token %q: %w", id, err)
	}
	if t.ID != id {
		return nil, fmt.Errorf("read token %q: the stored one says that it is %q", id, t.ID)
	}
	for field, value := range map[*time.Time]string{&t.LastUsed: used, &t.Revoked: revoked} {
		*field = time.Time{}
		if value == "" {
			continue
		}
		us, err := strconv.ParseInt(value, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("read token %q: %w", id, err)
		}
		*field = fromMicros(us)
	}
	return &t, nil
}

func (s *Redis) token(ctx context.Context, id string) (*tokenRow, error) {
	var text, used, revoked *redis.StringCmd
	_, err := s.client.TxPipelined(ctx, func(p redis.Pipeliner) error {
		text = p.HGet(ctx, s.key("tokens"), id)
		used = p.HGet(ctx, s.key("tokens_used"), id)
		revoked = p.HGet(ctx, s.key("tokens_revoked"), id)
		return nil
	})
	if errors.Is(text.Err(), redis.Nil) {
		return nil, noToken(id)
	}
	if err != nil && !errors.Is(err, redis.Nil) {
		return nil, s.failed(ctx, "read a token", err)
	}
	t, err := readToken(id, text.Val(), used.Val(), revoked.Val())
	return t, s.failed(ctx, "read a token", err)
}

func (s *Redis) tokens(ctx context.Context) ([]tokenRow, error) {
	var texts, used, revoked *redis.MapStringStringCmd
	_, err := s.client.TxPipelined(ctx, func(p redis.Pipeliner) error {
		texts = p.HGetAll(ctx, s.key("tokens"))
		used = p.HGetAll(ctx, s.key("tokens_used"))
		revoked = p.HGetAll(ctx, s.key("tokens_revoked"))
		return nil
	})
	if err != nil {
		return nil, s.failed(ctx, "read the tokens", err)
	}
	out := make([]tokenRow, 0, len(texts.Val()))
	for id, text := range texts.Val() {
		t, err := readToken(id, text, used.Val()[id], revoked.Val()[id])
		if err != nil {
			return nil, s.failed(ctx, "read the tokens", err)
		}
		out = append(out, *t)
	}
	return out, nil
}

const revokeScript = `
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('HSETNX', KEYS[3], ARGV[1], ARGV[2])
redis.call('INCR', KEYS[4])
return 1`

func (s *Redis) revokeToken(ctx context.Context, id string, at time.Time) error {
	there, err := s.change(ctx, "revoke a token", revokeScript, s.tokenKeys(), id, micros(at))
	if there == int64(0) {
		return noToken(id)
	}
	return err
}

func (s *Redis) tokensVersion(ctx context.Context) (string, error) {
	v, err := s.client.Get(ctx, s.key("tokens_version")).Result()
	if errors.Is(err, redis.Nil) {
		return "0", nil
	}
	return v, s.failed(ctx, "read the tokens", err)
}

const useScript = `
local used = tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '0')
if used <= tonumber(ARGV[3]) then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end
return 1`

func (s *Redis) useToken(ctx context.Context, id string, at time.Time) error {
	err := s.client.Eval(ctx, useScript, []string{s.key("tokens_used")}, id, micros(at), micros(at.Add(-usedEvery))).Err()
	return s.failed(ctx, "write down a token's use", err)
}

const dropScript = `
for i = 1, 3 do redis.call('HDEL', KEYS[i], ARGV[1]) end
return redis.call('INCR', KEYS[4])`

func (s *Redis) dropToken(ctx context.Context, id string) error {
	_, err := s.change(ctx, "drop a token", dropScript, s.tokenKeys(), id)
	return err
}

// auditScript numbers an entry and adds it. An entry that is sent again,
// because the answer got lost, is there once. The script and the number of
// entries are one transaction in the append-only file.
const auditScript = `
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
local n = 0
if #last > 0 then
	n = tonumber(string.match(last[1][1], '^%d+'))
	if last[1][2][4] == ARGV[2] then return n end
end
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[3], (n + 1) .. '-0', 'entry', ARGV[1], 'id', ARGV[2])
return n + 1`

func (s *Redis) appendAudit(ctx context.Context, e *AuditEntry) error {
	text, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode an audit entry: %w: %w", bulkhead.Invalid, err)
	}
	_, err = s.change(ctx, "write the audit log", auditScript, []string{s.key("audit")}, text, rand.Text(), MaxAudit)
	return err
}

func (s *Redis) audit(ctx context.Context, after int64, limit int) ([]AuditEntry, error) {
	list, err := s.client.XRangeN(ctx, s.key("audit"), fmt.Sprintf("(%d", after), "+", int64(limit)).Result()
	if err != nil {
		return nil, s.failed(ctx, "read the audit log", err)
	}
	out := make([]AuditEntry, len(list))
	for i, m := range list {
		text, _ := m.Values["entry"].(string)
		number, _, _ := strings.Cut(m.ID, "-")
		n, err := strconv.ParseInt(number, 10, 64)
		if err == nil {
			err = decode([]byte(text), &out[i])
		}
		if err != nil {
			return nil, s.failed(ctx, "read the audit log", fmt.Errorf("entry %s: %w", m.ID, err))
		}
		out[i].Number = n
	}
	return out, nil
}
