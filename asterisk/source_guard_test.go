package asterisk_test

import (
	"github.com/bulkhead-voip/bulkhead/asterisk"
	"github.com/bulkhead-voip/bulkhead/eventbridge"
)

var (
	_ eventbridge.Source = (*asterisk.Source)(nil)
	_ eventbridge.Source = (*asterisk.Outbound)(nil)
)
