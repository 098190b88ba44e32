package cli

import (
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/braidnet/braid/netagent/agent"
	"github.com/braidnet/braid/netagent/status"
)

func newStatus() *cobra.Command {
	var runDir, output string
	c := &cobra.Command{
		Use:   "status",
		Short: "say what the agent on this node has programmed, at which revision, and what failed last",
		Long: `Asks the running agent. Exit code 0: everything known is in the kernel; 1: it is not, or no agent answers.
The JSON form also says for each Service which revision of it is programmed.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if output != "text" && output != "json" {
				return errUsage{fmt.Errorf("output: unknown form %q: use text or json", output)}
			}
			fetch := status.Fetch
			if output == "json" {
				fetch = status.FetchAll
			}
			r, err := fetch(c.Context(), filepath.Join(runDir, "netagent.sock"))
			if err != nil {
				return err
			}
			if output == "json" {
				err = r.JSON(c.OutOrStdout())
			} else {
				err = r.Text(c.OutOrStdout(), time.Now())
			}
			if err == nil && !r.OK() {
				err = exitCode(1)
			}
			return err
		},
	}
	c.AddCommand(newStatusServices())
	c.Flags().StringVar(&runDir, "run-dir", agent.DefaultConfig().RunDir, "folder of the agent's socket (default: $BRAID_RUN_DIR, then /run/braid)")
	c.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return c
}

func newStatusServices() *cobra.Command {
	var runDir, output string
	c := &cobra.Command{
		Use:   "services [NAMESPACE/NAME]",
		Short: "say of each Service which revision of it is in force, since when, and what it has; of one, everything",
		Example: `  netagent status services
  netagent status services kube-system/kube-dns -o json`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return errUsage{fmt.Errorf("unexpected argument %q", args[1])}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			if output != "text" && output != "json" {
				return errUsage{fmt.Errorf("output: unknown form %q: use text or json", output)}
			}
			name := ""
			if len(args) == 1 {
				name = args[0]
			}
			s, err := status.FetchServices(c.Context(), filepath.Join(runDir, "netagent.sock"), name)
			if err != nil {
				return err
			}
			if output == "json" {
				return s.JSON(c.OutOrStdout())
			}
			return s.Text(c.OutOrStdout(), time.Now())
		},
	}
	c.Flags().StringVar(&runDir, "run-dir", agent.DefaultConfig().RunDir, "folder of the agent's socket (default: $BRAID_RUN_DIR, then /run/braid)")
	c.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return c
}
