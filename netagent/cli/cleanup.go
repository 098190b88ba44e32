package cli

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/braidnet/braid/netagent/agent"
)

func newCleanup() *cobra.Command {
	cfg := agent.DefaultConfig()
	var yes bool
	var foreign string
	c := &cobra.Command{
		Use:   "cleanup",
		Short: "remove everything Braid made on this node, and nothing else",
		Long: `Removes Braid's nftables tables and iptables chains, VXLAN devices, routes, the pod bridge with the pods'
interfaces, the CNI configuration, address reservations and the socket. Pods on this node lose their network:
drain it first. Refuses while an agent is running, since it would put everything back.

With --foreign kube-proxy it removes nothing of Braid's, but what a kube-proxy that was stopped has left: its
nftables tables, its iptables chains in both variants (the kubelet's stay), and the device of its mode IPVS.
An agent may run meanwhile.`,
		Example: `  netagent cleanup --yes
  netagent cleanup --foreign kube-proxy`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if !yes && foreign == "" {
				return errUsage{errors.New("cleanup cuts the pods of this node off: say --yes when that is meant")}
			}
			log, err := newLogger(c.ErrOrStderr(), "warn", "text")
			if err != nil {
				return err
			}
			cfg.Log = log
			what := "Braid"
			remove := func() ([]string, error) { return agent.Cleanup(c.Context(), cfg) }
			if foreign != "" {
				what = foreign
				remove = func() ([]string, error) { return agent.CleanupForeign(foreign, log) }
			}
			removed, err := remove()
			for _, r := range removed {
				fmt.Fprintln(c.OutOrStdout(), "removed", r)
			}
			if err == nil && len(removed) == 0 {
				fmt.Fprintf(c.OutOrStdout(), "nothing of %s's was here\n", what)
			}
			return err
		},
	}
	f := c.Flags()
	f.BoolVar(&yes, "yes", false, "do it")
	f.StringVar(&foreign, "foreign", "", "remove what this other service proxy has left instead: "+strings.Join(agent.ForeignProxies, ", "))
	f.StringVar(&cfg.RunDir, "run-dir", cfg.RunDir, "folder of the agent's socket")
	f.StringVar(&cfg.StateDir, "state-dir", cfg.StateDir, "folder of address reservations")
	f.StringVar(&cfg.CNIConfDir, "cni-conf-dir", cfg.CNIConfDir, "folder of "+agent.Conflist)
	return c
}
