package kamailio

import (
	_ "embed"
	"path/filepath"
	"strings"
)

//go:embed conf/attach.txt
var attachLines string

// Lines returns what to add to a kamailio.cfg that was there before, when the
// files are in dir.
func (p Params) Lines(dir string) string {
	rpc := ""
	if p.RPC == "" {
		sockets, err := socketDir(dir)
		if err != nil {
			sockets = dir // Write says what is wrong with it
		}
		rpc = `modparam("jsonrpcs", "dgram_socket", "` + filepath.Join(sockets, SocketFile) + "\")\n"
	}
	http := ""
	if p.Route != "" {
		http = "loadmodule \"http_client.so\"\n"
	}
	return strings.NewReplacer("DIR", dir, "RPC\n", rpc, "HTTP\n", http).Replace(attachLines)
}
