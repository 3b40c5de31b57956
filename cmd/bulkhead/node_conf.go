package main

import (
	"fmt"
	"path/filepath"

	"github.com/bulkhead-voip/bulkhead/internal/editfile"
)

// writeNodeConf writes a file of a PBX's configuration, and says so. It makes
// the folder, for whoever owns the one above it; the file holds the node's secrets.
func (a *app) writeNodeConf(node, path string, text []byte) error {
	if err := editfile.MakeFolder(filepath.Dir(path)); err != nil {
		return fmt.Errorf("write the configuration of node %q: %w", node, err)
	}
	if err := editfile.Replace(path, string(text)); err != nil {
		return fmt.Errorf("write the configuration of node %q: %w", node, err)
	}
	fmt.Fprintln(a.out, path)
	return nil
}
