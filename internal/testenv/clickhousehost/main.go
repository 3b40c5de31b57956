// Command clickhousehost is a ClickHouse server made out of libchdb.so, for
// tests: the engine's own listeners for the native protocol and HTTP.
//
//	clickhousehost LIB DIR NATIVE-PORT HTTP-PORT [CONFIG-FILE]
//
// It serves on 127.0.0.1 until its standard input closes, and keeps its data
// in DIR: what was there is there again after a restart.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"unsafe"

	"github.com/ebitengine/purego"
)

func main() {
	if len(os.Args) < 5 {
		fmt.Fprintln(os.Stderr, "usage: clickhousehost LIB DIR NATIVE-PORT HTTP-PORT [CONFIG-FILE]")
		os.Exit(2)
	}
	if err := serve(os.Args[1], os.Args[2], os.Args[3], os.Args[4], os.Args[5:]); err != nil {
		fmt.Fprintln(os.Stderr, "clickhousehost:", err)
		os.Exit(1)
	}
}

func serve(lib, dir, native, http string, config []string) error {
	// Before the library is loaded: a client that hangs up while it is being
	// answered would end the process.
	signal.Ignore(syscall.SIGPIPE)
	handle, err := purego.Dlopen(lib, purego.RTLD_NOW|purego.RTLD_GLOBAL)
	if err != nil {
		return fmt.Errorf("load %s: %w", lib, err)
	}
	if _, err := purego.Dlsym(handle, "chdb_query_cmdline"); err != nil {
		return fmt.Errorf("%s is not the library that this program knows: %w", lib, err)
	}
	var query func(argc int32, argv unsafe.Pointer) unsafe.Pointer
	purego.RegisterLibFunc(&query, handle, "chdb_query_cmdline")
	args := []string{
		"clickhouse", "--path=" + dir, "--listen_host=127.0.0.1", "--tcp_port=" + native, "--http_port=" + http,
		// The last statement reads until standard input ends.
		"--query=SYSTEM START LISTEN HTTP; SYSTEM START LISTEN TCP; SELECT count() FROM file('/dev/stdin', 'LineAsString')",
	}
	for _, c := range config {
		args = append(args, "--", "--config-file="+c)
	}
	argv := make([]*byte, len(args)+1)
	for i, a := range args {
		argv[i], err = syscall.BytePtrFromString(a)
		if err != nil {
			return fmt.Errorf("argument %q: %w", a, err)
		}
	}
	query(int32(len(args)), unsafe.Pointer(&argv[0]))
	runtime.KeepAlive(argv)
	return nil
}
