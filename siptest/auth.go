package siptest

import (
	"crypto/md5" //nolint:gosec // RFC 3261 digest
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"

	"github.com/emiago/sipgo/sip"
	"github.com/icholy/digest"

	"github.com/bulkhead-voip/bulkhead"
)

// Credentials answer digest challenges (RFC 3261 section 22, RFC 2617). It is
// never printed with its secrets.
type Credentials struct {
	User     string
	Password string `json:"-"` // or HA1
	HA1      string `json:"-"` // MD5(user:realm:password) in hex, used if Password is empty
}

// String returns the user only.
func (c Credentials) String() string { return c.User }

// GoString returns the user only.
func (c Credentials) GoString() string { return c.User }

// LogValue returns the user only.
func (c Credentials) LogValue() slog.Value { return slog.StringValue(c.User) }

// HA1 returns MD5(user:realm:password) in lower-case hex, as registrars keep it
// in place of the password (RFC 2617 section 3.2.2.2).
func HA1(user, realm, password string) string {
	sum := md5.Sum([]byte(user + ":" + realm + ":" + password)) //nolint:gosec // RFC 3261 digest
	return hex.EncodeToString(sum[:])
}

// authorize puts the answer to res's challenge into req and says whether the
// challenge called the former nonce stale.
func (c *Credentials) authorize(req *sip.Request, res *sip.Response) (stale bool, err error) {
	challenge, answer := "WWW-Authenticate", "Authorization"
	if res.StatusCode == sip.StatusProxyAuthRequired {
		challenge, answer = "Proxy-Authenticate", "Proxy-Authorization"
	}
	ch, err := digest.ParseChallenge(header(res, challenge))
	if err != nil {
		return false, fmt.Errorf("read %s: %w: %w", challenge, err, bulkhead.Invalid)
	}
	if ch.Algorithm != "" && !strings.EqualFold(ch.Algorithm, "MD5") {
		return false, fmt.Errorf("%s asks for algorithm %q, only MD5 is known: %w", challenge, ch.Algorithm, bulkhead.Invalid)
	}
	opts := digest.Options{Method: req.Method.String(), URI: req.Recipient.String(), Username: c.User, Password: c.Password}
	if c.Password == "" {
		opts.A1 = c.HA1
	}
	cred, err := digest.Digest(ch, opts)
	if err != nil {
		return false, fmt.Errorf("answer %s: %w: %w", challenge, err, bulkhead.Invalid)
	}
	removeHeaders(req, named(strings.ToLower(answer)))
	req.AppendHeader(sip.NewHeader(answer, cred.String()))
	return ch.Stale, nil
}
