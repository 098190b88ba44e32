package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/braidnet/braid/netagent/agent"
)

func newCleanup() *cobra.Command {
	cfg := agent.DefaultConfig()
	var yes bool
	c := &cobra.Command{
		Use:   "cleanup",
		Short: "remove everything Braid made on this node, and nothing else",
		Long: `Removes Braid's nftables tables and iptables chains, VXLAN devices, routes, the pod bridge with the pods'
interfaces, the CNI configuration, address reservations and the socket. Pods on this node lose their network:
drain it first. Refuses while an agent is running, since it would put everything back.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if !yes {
				return errUsage{errors.New("cleanup cuts the pods of this node off: say --yes when that is meant")}
			}
			log, err := newLogger(c.ErrOrStderr(), "warn", "text")
			if err != nil {
				return err
			}
			cfg.Log = log
			removed, err := agent.Cleanup(c.Context(), cfg)
			for _, r := range removed {
				fmt.Fprintln(c.OutOrStdout(), "removed", r)
			}
			if err == nil && len(removed) == 0 {
				fmt.Fprintln(c.OutOrStdout(), "nothing of Braid's was here")
			}
			return err
		},
	}
	f := c.Flags()
	f.BoolVar(&yes, "yes", false, "do it")
	f.StringVar(&cfg.RunDir, "run-dir", cfg.RunDir, "folder of the agent's socket")
	f.StringVar(&cfg.StateDir, "state-dir", cfg.StateDir, "folder of address reservations")
	f.StringVar(&cfg.CNIConfDir, "cni-conf-dir", cfg.CNIConfDir, "folder of "+agent.Conflist)
	return c
}
