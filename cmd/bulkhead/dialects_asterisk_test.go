package main

import (
	"fmt"
	"net/url"
	"strings"

	"pgregory.net/rapid"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/asterisk"
	"github.com/bulkhead-voip/bulkhead/route"
)

// followAsterisk asks as the shipped extensions.conf does and does what it does
// with the answer.
func followAsterisk(t *rapid.T, x *route.Snapshot, a asked) decided {
	v := url.Values{"exten": {a.call.Number}, "from": {a.from}, "callid": {a.call.ID}, "source": {a.call.Source.String() + ":5060"}}
	switch {
	case a.call.SBC != "":
		v.Set("endpoint", "_sbc.s")
		v.Set("xtenant", string(a.call.Tenant))
		v.Set("xuser", a.call.User)
	case a.call.User != "":
		v.Set("endpoint", a.call.User+"@"+a.realm)
	default:
		v.Set("endpoint", string(a.call.Tenant)+".source")
	}
	if a.transferred {
		v.Set("transfer", "1234:sip:x@y")
	}
	body := strings.ReplaceAll(v.Encode(), "+", "%20")
	answer, _ := asterisk.AnswerCall(x, "ast1", []byte(body), a.call.Time, nil)
	hash, err := url.ParseQuery(strings.TrimSuffix(string(answer), "\n"))
	if err != nil || hash.Get("v") != "1" {
		t.Fatalf("%s: %q: %v", body, answer, err)
	}
	f := &follower{causes: a.causes}
	if f.Head.Deferred = hash.Get("do") == "defer"; f.Head.Deferred {
		return f.decided
	}
	number := func(name string) (n int) {
		_, _ = fmt.Sscan(hash.Get(name), &n) // 0 without one
		return n
	}
	step := hash.Get("s")
	if hash.Get("a"+step) != "reject" {
		f.Head = head{
			Tenant: bulkhead.TenantID(hash.Get("t")), Max: number("max"), Record: hash.Get("rec") == "1", Tap: hash.Get("tap") == "1",
			Number: hash.Get("cid"), Name: hash.Get("cname"), Codecs: strings.NewReplacer("ulaw", "PCMU", "alaw", "PCMA").Replace(hash.Get("codecs")),
		}
	}
	for range 200 {
		if step == "" || step == "0" {
			f.note("over")
			return f.decided
		}
		to := hash.Get("o" + step)
		switch does := hash.Get("a" + step); does {
		case "dial":
			cause := f.ring(asteriskLegs(hash, step, to), number("w"+step))
			if cause == 0 {
				return f.decided
			}
			if hash.Get("f"+step) != "" && (hash.Get("c"+step) == "any" || hash.Get(fmt.Sprintf("c%s_%d", step, cause)) == "1") {
				step = hash.Get("f" + step)
				continue
			}
			what := "u"
			switch cause {
			case 17, 21:
				what = "b"
			case 19:
				what = "n"
			}
			step = hash.Get(what + step)
			continue
		case "play":
			f.note("play %s", to)
		case "voicemail":
			box, tenant, _ := strings.Cut(to, "@")
			if tenant != string(a.call.Tenant) {
				t.Fatalf("a box of %s", tenant)
			}
			f.note("voicemail %s", box)
		case "context":
			f.note("context %s %s", to, hash.Get("x"+step))
			return f.decided
		case "queue", "ivr", "conference":
			f.note("%s %s", does, to)
		case "reject":
			f.note("reject %s", to)
			return f.decided
		default:
			t.Fatalf("step %s does %q: %q", step, does, answer)
		}
		step = hash.Get("g" + step)
	}
	t.Fatalf("%q does not end", answer)
	return f.decided
}

func asteriskLegs(hash url.Values, step, to string) []string {
	var legs, headers []string
	for i := 1; hash.Has(fmt.Sprint("hn", i)); i++ {
		headers = append(headers, hash.Get(fmt.Sprint("hn", i))+"="+hash.Get(fmt.Sprint("hv", i)))
	}
	shows := hash.Get("k" + step)
	if hash.Get("y"+step) == "1" {
		shows = "nobody"
	}
	for _, leg := range strings.Split(to, "&") {
		part := strings.SplitN(leg, "/", 3)
		switch {
		case len(part) == 2:
			legs = append(legs, part[1])
		case part[1] == "_sbc.s":
			legs = append(legs, strings.TrimPrefix(part[2], "sip:")+" by the SBC")
		default:
			legs = append(legs, trunkLeg(strings.TrimPrefix(part[2], "sip:"), shows, headers))
		}
	}
	return legs
}
