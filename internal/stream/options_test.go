package stream

import (
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-voip/bulkhead/internal/spool"
)

func TestParseURL(t *testing.T) {
	for in, want := range map[string]Options{
		"redis://10.0.0.1":                         {Addrs: []string{"10.0.0.1:6379"}},
		"redis://u@h:1/3":                          {Addrs: []string{"h:1"}, DB: 3, Username: "u"},
		"redis://[2001:db8::1]":                    {Addrs: []string{"[2001:db8::1]:6379"}},
		"rediss://h:6380/":                         {Addrs: []string{"h:6380"}, TLS: true},
		"redis://a,b:7,c/2?master=mymaster":        {Addrs: []string{"a:26379", "b:7", "c:26379"}, MasterName: "mymaster", DB: 2},
		"redis://a,b?cluster=true":                 {Addrs: []string{"a:6379", "b:6379"}, Cluster: true},
		"unix:///run/redis/redis-server.sock?db=1": {Addrs: []string{"/run/redis/redis-server.sock"}, DB: 1},
	} {
		got, err := ParseURL(in)
		if d := cmp.Diff(want, got); err != nil || d != "" {
			t.Errorf("%s: %v\n%s", in, err, d)
		}
	}
	for _, in := range []string{
		"", "localhost:6379", "http://h", "redis://", "redis://a,b", "redis://a,b?master=m&cluster=true", "redis://h/x", "redis://h/-1",
		"redis://h?cluster=perhaps", "redis://h/1?cluster=true", "redis://h?password=x", "redis://u:hush@h", "redis://u:hush@h:x%zz", "unix://",
	} {
		got, err := ParseURL(in)
		if err == nil {
			t.Errorf("%q became %v", in, got)
		} else if strings.Contains(err.Error(), "hush") {
			t.Errorf("%q: the error shows the password: %v", in, err)
		}
	}
}

func TestOptionsKeepSecrets(t *testing.T) {
	o := Options{Addrs: []string{"h:1"}, Username: "hush", Password: "hush", SentinelUsername: "hush", SentinelPassword: "hush"}
	for _, s := range []string{o.String(), fmt.Sprint(o), fmt.Sprintf("%v %+v %#v %s", o, o, o, o), o.LogValue().String()} {
		if strings.Contains(s, "hush") {
			t.Errorf("%q shows a secret", s)
		}
	}
}

func TestConfigValidate(t *testing.T) {
	c := client(t, Options{Addrs: []string{"127.0.0.1:1"}})
	for field, spoil := range map[string]func(*ForwarderConfig){
		"Client": func(c *ForwarderConfig) { c.Client = nil }, "Source": func(c *ForwarderConfig) { c.Source = nil },
		"Stream": func(c *ForwarderConfig) { c.Stream = "a{b}" }, "Writer": func(c *ForwarderConfig) { c.Writer = "a b" },
		"Groups": func(c *ForwarderConfig) { c.Groups = nil }, "BatchSize": func(c *ForwarderConfig) { c.BatchSize = 0 },
		"MaxLen": func(c *ForwarderConfig) { c.MaxLen = 1 }, "Every": func(c *ForwarderConfig) { c.Every = 0 },
	} {
		cfg := DefaultForwarderConfig()
		cfg.Client, cfg.Stream, cfg.Writer, cfg.Groups, cfg.Source = c, "s", "w", []string{"g"}, &spool.Reader{}
		if err := cfg.Validate(); err != nil {
			t.Fatal(err)
		}
		spoil(&cfg)
		if _, err := NewForwarder(cfg); err == nil || !strings.Contains(err.Error(), ": "+field+" must") {
			t.Errorf("%s: %v", field, err)
		}
	}
	for field, spoil := range map[string]func(*ConsumerConfig){
		"Client": func(c *ConsumerConfig) { c.Client = nil }, "Stream": func(c *ConsumerConfig) { c.Stream = "" },
		"Group": func(c *ConsumerConfig) { c.Group = "" }, "Consumer": func(c *ConsumerConfig) { c.Consumer = "a\n" },
		"Claim": func(c *ConsumerConfig) { c.Claim = 0 },
	} {
		cfg := consumerConfig(t, c, "g", "c")
		spoil(&cfg)
		if _, err := NewConsumer(cfg); err == nil || !strings.Contains(err.Error(), ": "+field+" must") {
			t.Errorf("%s: %v", field, err)
		}
	}
}

// FuzzOrigin: what is accepted is written back as it was, but for zeros in front.
func FuzzOrigin(f *testing.F) {
	f.Add("host-1a2b s3ss10n 7:16 7:132")
	f.Add("w s 0:0 18446744073709551615:9223372036854775807")
	f.Add("w s 1:2 1:2")
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		o, err := parseOrigin(s)
		if err != nil {
			return
		}
		again, err := parseOrigin(string(o.appendTo(nil)))
		if err != nil || again != o {
			t.Fatalf("%q: %+v, again %+v, %v", s, o, again, err)
		}
	})
}

// FuzzParseURL: no error shows a password, and what is accepted is valid.
func FuzzParseURL(f *testing.F) {
	f.Add("redis://u@h:1/3")
	f.Add("redis://a,b?cluster=true")
	f.Add("redis://:xyzzyhush@h")
	f.Fuzz(func(t *testing.T, s string) {
		o, err := ParseURL(s)
		if err == nil {
			if err := o.Validate(); err != nil {
				t.Fatal(err)
			}
			return
		}
		if u, bad := url.Parse(s); bad == nil {
			if p, _ := u.User.Password(); len(p) > 20 && strings.Contains(err.Error(), p) {
				t.Fatalf("the error shows the password: %v", err)
			}
		}
	})
}

func TestParseSession(t *testing.T) {
	at := spool.Position{Segment: 3, Offset: 40}
	for in, want := range map[string]string{"s 3:40": "s", "s 3:40 5:1-6:2": "s", "": "", "s": "", "s x": "", "s 3": ""} {
		session, got := parseSession(in)
		if session != want || want != "" && got != at || want == "" && got != (spool.Position{}) {
			t.Errorf("%q: %q, %v", in, session, got)
		}
	}
}
