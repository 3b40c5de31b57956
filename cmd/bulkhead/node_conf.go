package main

import (
	"fmt"
	"os"
	"path/filepath"
)

// writeNodeConf writes a file of a PBX's configuration, and says so. It makes
// the folder; the file holds the node's secrets.
func (a *app) writeNodeConf(node, path string, text []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return fmt.Errorf("write the configuration of node %q: %w", node, err)
	}
	if err := os.WriteFile(path, text, 0o640); err != nil {
		return fmt.Errorf("write the configuration of node %q: %w", node, err)
	}
	fmt.Fprintln(a.out, path)
	return nil
}
