package freeswitch_test

import (
	"github.com/bulkhead-voip/bulkhead/eventbridge"
	"github.com/bulkhead-voip/bulkhead/freeswitch"
)

var _ eventbridge.Source = (*freeswitch.Source)(nil)
