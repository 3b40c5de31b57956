// Package api holds the description of the admin API.
package api

import _ "embed"

// OpenAPI is the OpenAPI 3.1 description of the admin API, as YAML.
//
//go:embed openapi.yaml
var OpenAPI []byte
