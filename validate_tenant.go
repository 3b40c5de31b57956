package bulkhead

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Validate checks the tenant alone.
func (t *Tenant) Validate() error {
	errs := []error{
		validID("id", string(t.ID)),
		validID("profile", string(t.Profile)),
		validText("name", t.Name),
	}
	if len(t.Domains) == 0 {
		errs = append(errs, invalid("domains", "tenant %q needs a domain: it is the realm of its users", t.ID))
	}
	for i, d := range t.Domains {
		errs = append(errs, validHost(fmt.Sprintf("domains[%d]", i), d))
	}
	for i, p := range t.Sources {
		errs = append(errs, validSource(fmt.Sprintf("sources[%d]", i), p))
	}
	errs = append(errs, t.validUsers(), t.validNumbers(), t.validTrunks())
	for i, c := range t.Codecs {
		if !slices.Contains(Codecs, c) {
			errs = append(errs, invalid(fmt.Sprintf("codecs[%d]", i), "%q is not one of %s", c, strings.Join(Codecs, ", ")))
		}
	}
	errs = append(errs,
		within("limits.calls", t.Limits.Calls, 0, 100000),
		within("limits.calls_per_second", t.Limits.CallsPerSecond, 0, 10000),
		within("limits.max_duration", t.Limits.MaxDuration, 0, 86400),
		within("priority", t.Priority, 0, 100),
		t.validPolicies(), t.validHeaders(), t.validTargets(), t.validAnswer())
	return errors.Join(errs...)
}

func (t *Tenant) validUsers() error {
	var errs []error
	seen := make(map[string]bool, len(t.Users))
	emergency := t.EmergencyNumbers()
	for i := range t.Users {
		u := &t.Users[i]
		at := func(f string) string { return fmt.Sprintf("users[%d].%s", i, f) }
		if !extensionForm.MatchString(u.Extension) {
			errs = append(errs, invalid(at("extension"), "%q is not an extension: use 1 to 15 of a-z, 0-9, - and _", u.Extension))
		}
		if seen[u.Extension] {
			errs = append(errs, conflict(at("extension"), "%q is there twice in tenant %q", u.Extension, t.ID))
		}
		seen[u.Extension] = true
		if slices.Contains(emergency, u.Extension) {
			errs = append(errs, invalid(at("extension"), "%q is an emergency number: choose another, or list the tenant's emergency numbers without it", u.Extension))
		}
		if b, err := hex.DecodeString(u.HA1); err != nil || len(b) != 16 || strings.ToLower(u.HA1) != u.HA1 {
			errs = append(errs, invalid(at("ha1"), "is not MD5(extension:realm:password) as 32 lower-case hex digits"))
		}
		if u.CallerID != "" && !numberForm.MatchString(u.CallerID) {
			errs = append(errs, invalid(at("caller_id"), "%q is not an E.164 number without '+'", u.CallerID))
		}
		errs = append(errs, validText(at("name"), u.Name), within(at("devices"), u.Devices, 0, 20))
		if f := u.Forward; f != nil && f.After != 0 {
			errs = append(errs, within(at("forward.after"), f.After, 5, 300))
		}
	}
	return errors.Join(errs...)
}

func (t *Tenant) validNumbers() error {
	var errs []error
	for i, n := range t.Numbers {
		at := func(f string) string { return fmt.Sprintf("numbers[%d].%s", i, f) }
		if !numberForm.MatchString(n.Number) {
			errs = append(errs, invalid(at("number"), "%q is not an E.164 number without '+'", n.Number))
		}
		switch {
		case n.User == "" && n.Target == "":
			errs = append(errs, invalid(at("user"), "is missing: the number needs a user or a target"))
		case n.User != "" && n.Target != "":
			errs = append(errs, invalid(at("target"), "is there beside user: leave one out"))
		}
	}
	return errors.Join(errs...)
}

func (t *Tenant) validTrunks() error {
	var errs []error
	seen := make(map[string]bool, len(t.Trunks))
	for i, k := range t.Trunks {
		at := func(f string) string { return fmt.Sprintf("trunks[%d].%s", i, f) }
		errs = append(errs, validID(at("name"), k.Name))
		if seen[k.Name] {
			errs = append(errs, conflict(at("name"), "%q is there twice in tenant %q", k.Name, t.ID))
		}
		seen[k.Name] = true
		// A zone may hold any character, and the host becomes part of a SIP URI.
		if a, err := netip.ParseAddr(k.Host); err != nil || a.Zone() != "" {
			errs = append(errs, validHost(at("host"), k.Host))
		}
		if k.Port == 0 {
			errs = append(errs, invalid(at("port"), "is missing: 5060 is usual"))
		}
		if !prefixForm.MatchString(k.Prefix) {
			errs = append(errs, invalid(at("prefix"), "%q is not 0 to 15 digits", k.Prefix))
		}
		errs = append(errs, within(at("priority"), k.Priority, 0, 100), within(at("weight"), k.Weight, 0, 100))
		errs = append(errs, k.validCredentials(at))
	}
	return errors.Join(errs...)
}

func (k *Trunk) validCredentials(at func(string) string) error {
	var errs []error
	if k.Username != "" && !usernameForm.MatchString(k.Username) {
		errs = append(errs, invalid(at("username"), "%q is not 1 to 64 of letters, digits and . _ + @ -", k.Username))
	}
	if k.Realm != "" {
		errs = append(errs, validHost(at("realm"), k.Realm))
	}
	switch {
	case k.Password != "" && !passwordForm.MatchString(string(k.Password)):
		errs = append(errs, invalid(at("password"), "holds a character that is not allowed, or is over 64 long: use letters, digits and . , _ + @ ! # * = ~ ^ -"))
	case k.Password != "" && k.Username == "":
		errs = append(errs, invalid(at("username"), "is missing beside a password"))
	case k.Password == "" && (k.Username != "" || k.Realm != "" || k.Register):
		errs = append(errs, invalid(at("password"), "is missing: username, realm and register are for carriers that ask for one"))
	}
	return errors.Join(errs...)
}
