package siptest

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/emiago/sipgo/sip"
	"github.com/icholy/digest"
)

// nonces makes and checks nonces without remembering them: time, chance, and
// a MAC over both. A nonce may be used again until it expires.
type nonces struct {
	key  [32]byte
	life time.Duration
}

func newNonces(life time.Duration) (*nonces, error) {
	n := &nonces{life: life}
	if _, err := rand.Read(n.key[:]); err != nil {
		return nil, fmt.Errorf("make a key for nonces: %w", err)
	}
	return n, nil
}

func (n *nonces) issue(now time.Time) string {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], uint64(now.UnixMilli()))
	rand.Read(b[8:]) // crypto/rand.Read does not fail
	return hex.EncodeToString(append(b[:], n.mac(b[:])...))
}

func (n *nonces) mac(b []byte) []byte {
	h := hmac.New(sha256.New, n.key[:])
	h.Write(b)
	return h.Sum(nil)[:16]
}

// check reports whether the nonce is ours, and whether it is too old.
func (n *nonces) check(s string, now time.Time) (ours, stale bool) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != 32 || !hmac.Equal(b[16:], n.mac(b[:16])) {
		return false, false
	}
	age := now.Sub(time.UnixMilli(int64(binary.BigEndian.Uint64(b))))
	return true, age < 0 || age > n.life
}

// authenticate reports whether the request meets the verdict's challenge; if
// not, it has answered: 401 or 407 to one without a valid nonce, 403 to a
// wrong password or somebody else's.
func (p *Proxy) authenticate(tx *serverTx, v *Verdict) bool {
	c := v.Challenge
	register := tx.req.Method == sip.REGISTER
	name := "proxy-authorization"
	if register {
		name = "authorization"
	}
	var cred *digest.Credentials
	for _, h := range tx.req.GetHeaders(name) {
		if got, err := digest.ParseCredentials(h.Value()); err == nil && got.Realm == c.Realm {
			cred = got
			break
		}
	}
	ours, stale := false, false
	if cred != nil {
		ours, stale = p.nonces.check(cred.Nonce, time.Now())
	}
	if !ours || stale {
		p.challenge(tx, c.Realm, stale)
		return false
	}
	if cred.Username != c.User || c.HA1 == "" || !matches(cred, c.HA1, tx.req.Method.String()) {
		if register {
			tx.reply(sip.StatusForbidden, "bad credentials")
		} else {
			p.refuse(tx, *v, sip.StatusForbidden, "bad credentials")
		}
		return false
	}
	return true
}

func (p *Proxy) challenge(tx *serverTx, realm string, stale bool) {
	ch := digest.Challenge{Realm: realm, Nonce: p.nonces.issue(time.Now()), Algorithm: "MD5", QOP: []string{"auth"}, Stale: stale}
	if tx.req.Method == sip.REGISTER {
		tx.reply(sip.StatusUnauthorized, "Unauthorized", sip.NewHeader("WWW-Authenticate", ch.String()))
		return
	}
	tx.reply(sip.StatusProxyAuthRequired, "Proxy Authentication Required", sip.NewHeader("Proxy-Authenticate", ch.String()))
}

// matches computes the response that the holder of HA1 would give (RFC 2617
// section 3.2.2.1).
func matches(cred *digest.Credentials, ha1, method string) bool {
	ch := &digest.Challenge{Realm: cred.Realm, Nonce: cred.Nonce, Algorithm: "MD5"}
	switch cred.QOP {
	case "":
	case "auth":
		if cred.Cnonce == "" || cred.Nc <= 0 {
			return false
		}
		ch.QOP = []string{"auth"}
	default:
		return false
	}
	want, err := digest.Digest(ch, digest.Options{
		Method: method, URI: cred.URI, Username: cred.Username, A1: ha1, Count: cred.Nc, Cnonce: cred.Cnonce,
	})
	return err == nil && subtle.ConstantTimeCompare([]byte(strings.ToLower(cred.Response)), []byte(want.Response)) == 1
}
