package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
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
		Long:  "Asks the running agent. Exit code 0: everything known is in the kernel; 1: it is not, or no agent answers.",
		Args:  noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if output != "text" && output != "json" {
				return errUsage{fmt.Errorf("output: unknown form %q: use text or json", output)}
			}
			r, err := fetchStatus(c.Context(), filepath.Join(runDir, "netagent.sock"))
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
	c.Flags().StringVar(&runDir, "run-dir", agent.DefaultConfig().RunDir, "folder of the agent's socket (default: $BRAID_RUN_DIR, then /run/braid)")
	c.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return c
}

// fetchStatus asks the agent behind a socket for its report.
func fetchStatus(ctx context.Context, socket string) (*status.Report, error) {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://netagent/status", nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("no agent answers on %s: is `netagent run` running on this node, with this --run-dir?", socket)
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("%s may be read by root only: run this as root", socket)
	case err != nil:
		return nil, err
	}
	defer resp.Body.Close()
	var r status.Report
	if err := json.NewDecoder(resp.Body).Decode(&r); err != nil {
		return nil, fmt.Errorf("the agent on %s gave no status: %w", socket, err)
	}
	return &r, nil
}
