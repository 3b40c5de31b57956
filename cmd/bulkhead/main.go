// Command bulkhead is the control plane: every service and every tool, one
// subcommand each.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"
)

// version is set by the linker.
var version = "dev"

// Exit codes.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

type cli struct {
	Run         runCmd         `cmd:"" help:"Every service in one process, on embedded defaults."`
	Configsvc   configsvcCmd   `cmd:"" help:"Answer PBXs' per-call questions."`
	Dispatcher  dispatcherCmd  `cmd:"" help:"Keep one Kamailio's tables equal to the registry."`
	Eventbridge eventbridgeCmd `cmd:"" help:"Drain call events of media nodes and SBCs into the spool."`
	Cdrpipe     cdrpipeCmd     `cmd:"" help:"Move records from the spool to the store."`
	MediaNode   mediaNodeCmd   `cmd:"" help:"A pure-Go media node that behaves like a FreeSWITCH, for tests."`
	Apply       applyCmd       `cmd:"" help:"Put the objects of a YAML file into the registry, as one revision."`
	Export      exportCmd      `cmd:"" help:"Write the registry as YAML."`
	Cdr         cdrCmd         `cmd:"" help:"Search, follow and export call records; KPIs."`
	Spool       spoolCmd       `cmd:"" help:"Look into a spool, also while it is in use."`
	Log         logCmd         `cmd:"" help:"List the revisions of the registry, newest first."`
	Show        showCmd        `cmd:"" help:"Show what one revision changed."`
	Diff        diffCmd        `cmd:"" help:"Show what leads from one revision to another."`
	Rollback    rollbackCmd    `cmd:"" help:"Make the state of an old revision the newest one."`
	Backup      backupCmd      `cmd:"" help:"Write the whole registry into a file, while it is in use."`
	Restore     restoreCmd     `cmd:"" help:"Make the registry say what a backup says, as one revision."`
	User        userCmd        `cmd:"" help:"Users of a tenant."`
	Shadow      shadowCmd      `cmd:"" help:"What configsvc --shadow would have done."`
	Route       routeCmd       `cmd:"" help:"What is done with calls."`
	Token       tokenCmd       `cmd:"" help:"Tokens of the admin API and the feed."`
	Node        nodeCmd        `cmd:"" help:"Drain, disable and take back media nodes."`
	Pool        poolCmd        `cmd:"" help:"Pools of media nodes."`
	Doctor      doctorCmd      `cmd:"" help:"Look for what is wrong."`
	Detach      detachCmd      `cmd:"" help:"Take out of a PBX's configuration what was added to it."`
	Config      configCmd      `cmd:"" help:"Print a PBX's configuration, filled in for one node."`
	Version     versionCmd     `cmd:"" help:"Print the version."`
}

// app is what every subcommand gets.
type app struct {
	out, err io.Writer
}

type versionCmd struct{}

func (versionCmd) Run(a *app) error {
	fmt.Fprintln(a.out, "bulkhead", version)
	return nil
}

func main() {
	// The first signal ends everything in order, a second one at once.
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		cancel()
		<-signals
		os.Exit(exitFailure)
	}()
	os.Exit(execute(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// execute runs one command line and returns its exit code.
func execute(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var c cli
	parser, err := kong.New(&c, kong.Name("bulkhead"), kong.Writers(stdout, stderr),
		kong.Description("A sidecar control plane for multi-tenant FreeSWITCH, Asterisk and Kamailio."),
		kong.UsageOnError(), kong.Exit(func(code int) { panic(exitRequest(code)) }))
	if err != nil {
		fmt.Fprintln(stderr, "bulkhead:", err)
		return exitFailure
	}
	code := exitOK
	func() {
		// kong ends the process after --help; a test must survive that.
		defer func() {
			if r := recover(); r != nil {
				want, ok := r.(exitRequest)
				if !ok {
					panic(r)
				}
				code = int(want)
			}
		}()
		k, err := parser.Parse(args)
		if err != nil {
			fmt.Fprintln(stderr, "bulkhead:", err)
			code = exitUsage
			return
		}
		k.BindTo(ctx, (*context.Context)(nil))
		if err := k.Run(&app{out: stdout, err: stderr}); err != nil && !errors.Is(err, context.Canceled) {
			fmt.Fprintln(stderr, "bulkhead:", err)
			code = exitFailure
		}
	}()
	return code
}

// exitRequest is how kong's wish to end the process travels to execute.
type exitRequest int
