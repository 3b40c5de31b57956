package kamailio

import (
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

// What bulkhead.cfg asks about, at most.
const (
	maxQuery  = 2048
	maxDomain = 255
	maxNumber = 64
)

// Answered says what Answer made of a question.
type Answered struct {
	Outcome string // found, none, denied or malformed
	Tenant  bulkhead.TenantID
	Status  int // of HTTP
}

// Answer answers GET /kamailio/route?d=DOMAIN&s=SOURCE&n=NUMBER, which an SBC
// asks about a call of nobody in its tables: TENANT|ROW with the value that
// the row t:TENANT will have, or 404 and nothing. It answers whatever query
// holds. sbc is who proved to ask; empty: nobody did, and the answer is 403.
func Answer(x *route.Snapshot, sbc bulkhead.SBCID, query string, dst []byte) ([]byte, Answered) {
	if sbc == "" {
		return dst, Answered{Outcome: "denied", Status: http.StatusForbidden}
	}
	c, ok := decodeQuery(query)
	if !ok {
		return dst, Answered{Outcome: "malformed", Status: http.StatusBadRequest}
	}
	c.SBC = sbc
	p := route.Decide(x, c)
	row := ""
	if p.Tenant != "" {
		row = x.TenantRow(p.Cell, p.Tenant)
	}
	if row == "" {
		return dst, Answered{Outcome: "none", Status: http.StatusNotFound}
	}
	dst = append(append(append(dst, p.Tenant...), '|'), row...)
	return dst, Answered{Outcome: "found", Tenant: p.Tenant, Status: http.StatusOK}
}

// decodeQuery reads a question. Parts that it does not know are ignored.
func decodeQuery(query string) (c route.Call, ok bool) {
	if len(query) > maxQuery {
		return c, false
	}
	for query != "" {
		var part string
		part, query, _ = strings.Cut(query, "&")
		name, value, _ := strings.Cut(part, "=")
		value, err := url.QueryUnescape(value)
		if err != nil {
			return c, false
		}
		switch name {
		case "d":
			c.Domain = value
		case "n":
			c.Number = value
		case "s":
			if c.Source, err = netip.ParseAddr(value); err != nil {
				return c, false
			}
		}
	}
	return c, c.Domain != "" && len(c.Domain) <= maxDomain && len(c.Number) <= maxNumber && c.Source.IsValid() && c.Source.Zone() == ""
}
