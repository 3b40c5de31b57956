// Command composecheck holds a compose file against the compose
// specification, without any engine: it loads it as docker compose would,
// with every variable from an environment file.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/compose-spec/compose-go/v2/cli"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: composecheck COMPOSE_FILE ENV_FILE")
		os.Exit(2)
	}
	if err := check(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "composecheck:", err)
		os.Exit(1)
	}
}

func check(file, env string) error {
	options, err := cli.NewProjectOptions([]string{file},
		cli.WithName("bulkhead"), cli.WithEnvFiles(env), cli.WithDotEnv, cli.WithInterpolation(true), cli.WithResolvedPaths(true))
	if err != nil {
		return err
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		return err
	}
	for _, s := range project.Services {
		fmt.Println(s.Name)
	}
	return nil
}
