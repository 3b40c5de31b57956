// Package deploy holds the files that operators copy.
package deploy

import _ "embed"

// Example is example.yaml: a commented registry of five tenants in two pools,
// all on loopback addresses.
//
//go:embed example.yaml
var Example []byte
