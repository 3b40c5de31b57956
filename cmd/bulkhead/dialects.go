package main

import (
	"net/http"

	"github.com/bulkhead-voip/bulkhead/configsvc"
	"github.com/bulkhead-voip/bulkhead/freeswitch"
	"github.com/bulkhead-voip/bulkhead/route"
)

// dialects are the words of each PBX that configsvc answers in.
func dialects() []configsvc.Dialect {
	return []configsvc.Dialect{
		{Name: "freeswitch", Pattern: "/freeswitch/xml", Methods: []string{http.MethodPost}, ContentType: "text/xml; charset=utf-8", Answer: freeswitchXML},
	}
}

// freeswitchXML answers mod_xml_curl.
func freeswitchXML(x *route.Snapshot, q configsvc.Question, dst []byte) ([]byte, configsvc.Result) {
	answer, sum := freeswitch.Answer(x, q.Node, q.Body, dst)
	return answer, configsvc.Result{Outcome: sum.Section + " " + sum.Outcome, Tenant: sum.Tenant}
}
