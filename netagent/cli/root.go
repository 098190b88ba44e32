// Package cli is the command line of netagent: one verb, one file.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/braidnet/braid/netagent/lab"
)

// Version is set by the linker; an unset one falls back to what Go recorded.
var Version = ""

func version() string {
	if Version != "" {
		return Version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "devel"
}

// errUsage marks errors that come from wrong use: exit code 2.
type errUsage struct{ error }

// exitCode is an error that only carries a code: everything worth saying has been printed.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// ExitCode makes the exit code of a child process known to Main.
func (e exitCode) ExitCode() int { return int(e) }

// Main runs netagent with the arguments of the process and returns its exit code: 0 well, 1 failed,
// 2 wrong use. `lab exec` passes on the code of the command it ran.
func Main() int {
	// A second signal ends the process at once, in case shutting down hangs.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)

	root := newRoot()
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	if code, silent := codeOf(err); silent {
		return code
	}
	fmt.Fprintln(os.Stderr, "netagent:", err)
	var usage errUsage
	if errors.As(err, &usage) {
		fmt.Fprintf(os.Stderr, "try: %s --help\n", cmd.CommandPath())
		return 2
	}
	return 1
}

// codeOf returns the exit code of an error that needs no words. An error that says more than that a program ended, such
// as that of an agent whose tools may not do what it asks of them, is no such error.
func codeOf(err error) (code int, silent bool) {
	var child *exec.ExitError
	if errors.As(err, &child) && err != error(child) {
		return 0, false
	}
	var coded interface{ ExitCode() int }
	if errors.As(err, &coded) {
		return coded.ExitCode(), true
	}
	return 0, false
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "netagent",
		Short:         "Braid's node agent: services, pod network and the playground",
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       version(),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return errUsage{fmt.Errorf("unknown verb %q", args[0])}
			}
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetVersionTemplate("netagent {{.Version}}\n")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		if advice := adviceFor(unknownFlag(err)); advice != "" {
			err = fmt.Errorf("%w: %s", err, advice)
		}
		return errUsage{err}
	})
	root.AddCommand(newRun(), newStatus(), newCleanup(), newPolicy(), newInstallCNI(), newUninstallCNI(), lab.Command())
	return root
}

// newLogger returns the process's logger: text for people, json for collectors.
func newLogger(w io.Writer, level, format string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, errUsage{fmt.Errorf("log-level: unknown level %q: use debug, info, warn or error", level)}
	}
	opts := &slog.HandlerOptions{Level: l}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	}
	return nil, errUsage{fmt.Errorf("log-format: unknown format %q: use text or json", format)}
}

// noArgs is cobra.NoArgs with our exit code.
func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return errUsage{fmt.Errorf("unexpected argument %q", args[0])}
	}
	return nil
}
