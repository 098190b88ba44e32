package cli

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"

	"github.com/spf13/cobra"

	"github.com/braidnet/braid/netagent/policytest"
)

func newPolicy() *cobra.Command {
	c := &cobra.Command{
		Use:   "policy",
		Short: "say who may reach whom",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return errUsage{fmt.Errorf("unknown verb %q: use test", args[0])}
			}
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(newPolicyTest())
	return c
}

// policyTest is what `netagent policy test` is told.
type policyTest struct {
	options           policytest.Options
	addresses, ranges []string
	expect, output    string
	all, why          bool
}

func newPolicyTest() *cobra.Command {
	var t policyTest
	c := &cobra.Command{
		Use:   "test FILE|FOLDER|-…",
		Short: "say from manifests alone who may reach whom, and whether that is as expected",
		Long: `Reads Namespaces, Pods, workloads (Deployment, StatefulSet, DaemonSet, ReplicaSet, ReplicationController,
Job, CronJob) and NetworkPolicies, and prints for every two of them what may be sent from the one to the
other. Other kinds are passed over. No cluster is asked. Services have no say: a policy is about the pods
behind them and the ports these listen on.

"outside" stands for any address that is neither a pod's nor in an ipBlock; give others with --address.

A file for --expect has lines like those that are printed, so the output of one run is such a file:
FROM TO and all, none, or ports. "*" is every end that no other line names.
Exit code 0: as expected; 1: it is not, or the manifests are wrong; 2: wrong use.`,
		Example: `  netagent policy test examples/shop.yaml
  netagent policy test --why --address 192.0.2.10 manifests/
  kustomize build . | netagent policy test --expect reach.txt -`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errUsage{fmt.Errorf("no manifests: name files or folders, or - for standard input")}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error { return t.run(c, args) },
	}
	f := c.Flags()
	f.SortFlags = false
	f.StringVar(&t.expect, "expect", "", "file of what is expected: print only what is otherwise")
	f.BoolVar(&t.all, "all", false, "also list pairs between which everything is allowed")
	f.BoolVar(&t.why, "why", false, "name the policy and rule behind each line")
	f.StringSliceVar(&t.addresses, "address", nil, "addresses to list besides the pods")
	f.BoolVar(&t.options.IPv6, "ipv6", false, "look at IPv6 instead of IPv4")
	f.StringSliceVar(&t.ranges, "pod-cidr", nil, "ranges that pods without an address get one from, as far as ipBlocks matter (default 10.244.0.0/16,fd00:10:244::/56)")
	f.StringVarP(&t.output, "output", "o", "text", "text or json")
	return c
}

func (t *policyTest) run(c *cobra.Command, args []string) error {
	if t.output != "text" && t.output != "json" {
		return errUsage{fmt.Errorf("output: unknown form %q: use text or json", t.output)}
	}
	if err := t.parse(); err != nil {
		return errUsage{err}
	}
	inputs, err := policytest.Read(args, c.InOrStdin())
	if err != nil {
		return err
	}
	study, err := policytest.New(inputs, t.options)
	if err != nil {
		return err
	}
	for _, n := range study.Notes {
		fmt.Fprintln(c.ErrOrStderr(), "note:", n)
	}
	if t.expect == "" {
		return t.print(c, study)
	}
	data, err := os.ReadFile(t.expect)
	if err != nil {
		return fmt.Errorf("read expectations: %w", err)
	}
	wrong, err := study.Check(t.expect, data)
	if err != nil {
		return err
	}
	for _, w := range wrong {
		fmt.Fprintln(c.OutOrStdout(), w)
	}
	if len(wrong) > 0 {
		return fmt.Errorf("%d pairs are not as expected", len(wrong))
	}
	fmt.Fprintln(c.OutOrStdout(), "as expected")
	return nil
}

func (t *policyTest) print(c *cobra.Command, study *policytest.Study) error {
	if t.output == "text" {
		return study.Print(c.OutOrStdout(), t.all, t.why)
	}
	e := json.NewEncoder(c.OutOrStdout())
	e.SetIndent("", "  ")
	return e.Encode(map[string]any{"notes": study.Notes, "pairs": study.Pairs})
}

func (t *policyTest) parse() error {
	for _, text := range t.addresses {
		a, err := netip.ParseAddr(text)
		if err != nil || a.Zone() != "" {
			return fmt.Errorf("address: %q is no address, such as 192.0.2.10", text)
		}
		if a.Unmap().Is4() == t.options.IPv6 {
			return fmt.Errorf("address: %s is of the other family: with --ipv6 give IPv6 addresses, without it IPv4", text)
		}
		t.options.Addresses = append(t.options.Addresses, a.Unmap())
	}
	families := map[bool]bool{}
	for _, text := range t.ranges {
		p, err := netip.ParsePrefix(text)
		if err != nil || families[p.Addr().Is4()] {
			return fmt.Errorf("pod-cidr: %q is no range such as 10.244.0.0/16, or the second one of its family", text)
		}
		families[p.Addr().Is4()] = true
		t.options.PodCIDRs = append(t.options.PodCIDRs, p)
	}
	if len(t.ranges) == 0 {
		t.options.PodCIDRs = policytest.DefaultPodCIDRs
	}
	return nil
}
