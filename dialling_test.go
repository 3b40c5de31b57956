package bulkhead

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestE164(t *testing.T) {
	berlin := Dialling{Country: "49", Area: "30", NationalPrefix: "0", InternationalPrefix: "00"}
	outside := berlin
	outside.OutsidePrefix = "9"
	newYork := Dialling{Country: "1", Area: "212", NationalPrefix: "1", InternationalPrefix: "011"}
	copenhagen := Dialling{Country: "45", InternationalPrefix: "00"}
	moscow := Dialling{Country: "7", NationalPrefix: "8", InternationalPrefix: "810"}
	for _, c := range []struct {
		d             Dialling
		dialled, want string // empty: none
	}{
		{berlin, "123456", "4930123456"}, {berlin, "089123456", "4989123456"}, {berlin, "0044207946", "44207946"},
		{berlin, "+44207946", "44207946"}, {berlin, "+49030123456", "4930123456"}, {berlin, "00490900123", "49900123"},
		{berlin, "0", ""}, {berlin, "+", ""}, {berlin, "", ""}, {berlin, "00", ""}, {berlin, "12x", ""}, {berlin, "++4930", ""},
		{berlin, "0012345678901234", "12345678901234"}, {berlin, "001234567890123456", ""}, {berlin, "000123", ""},
		{Dialling{Country: "1", NationalPrefix: "0"}, "0000", ""}, {Dialling{Country: "1", NationalPrefix: "0"}, "+100234", ""},
		{outside, "9123456", "4930123456"}, {outside, "123456", ""}, {outside, "90044207946", "44207946"}, {outside, "+44207946", "44207946"}, {outside, "9", ""},
		{newYork, "5550100", "12125550100"}, {newYork, "2125550100", "12125550100"}, {newYork, "14155550100", "14155550100"}, {newYork, "01144207946", "44207946"},
		{copenhagen, "12345678", "4512345678"}, {copenhagen, "0049301", "49301"},
		{moscow, "88121234567", "78121234567"}, {moscow, "+78121234567", "78121234567"}, {moscow, "810493012", "493012"},
		{Dialling{}, "493012", "493012"}, {Dialling{}, "+493012", "493012"}, {Dialling{}, "0493012", ""}, {Dialling{Country: "49"}, "493012", "493012"},
		{Dialling{OutsidePrefix: "0"}, "0493012", "493012"}, {Dialling{OutsidePrefix: "0"}, "493012", ""},
	} {
		if got, ok := c.d.E164(c.dialled); got != c.want || ok != (c.want != "") {
			t.Errorf("%+v: %q is %q (%v), want %q", c.d, c.dialled, got, ok, c.want)
		}
	}
}

// Whatever is dialled: what comes out is E.164, and has no national prefix
// behind its country code.
func TestE164IsE164(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := Dialling{
			Country: rapid.SampledFrom([]string{"", "1", "49", "44", "372"}).Draw(t, "country"), NationalPrefix: rapid.SampledFrom([]string{"", "0", "1", "06"}).Draw(t, "np"),
			InternationalPrefix: rapid.SampledFrom([]string{"", "00", "011"}).Draw(t, "ip"), Area: rapid.SampledFrom([]string{"", "30", "212"}).Draw(t, "area"),
			OutsidePrefix: rapid.SampledFrom([]string{"", "0", "9"}).Draw(t, "op"),
		}
		number, ok := d.E164(rapid.StringMatching(`\+?[0-9]{0,20}|[ -~]{0,10}`).Draw(t, "dialled"))
		if !ok {
			return
		}
		if !numberForm.MatchString(number) {
			t.Fatalf("%q is not E.164", number)
		}
		if d.Country != "" && d.NationalPrefix == "0" && strings.HasPrefix(number, d.Country+"0") {
			t.Fatalf("%q still has the national prefix", number)
		}
	})
}
