package lab

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/braidnet/braid/netagent/lab/cluster"
)

const (
	defaultName    = "braid"
	defaultNodes   = 3
	defaultTimeout = 3 * time.Minute
	// wrongUse is the exit code of a command line that cannot be meant.
	wrongUse = 2
)

// usageError is an error of the command line; netagent ends with its code.
type usageError struct{ error }

// usage prints the complaint, since an error that carries an exit code is taken to have said it.
func usage(c *cobra.Command, err error) error {
	fmt.Fprintf(c.ErrOrStderr(), "netagent: %v\ntry: %s --help\n", err, c.CommandPath())
	return usageError{err}
}

// ExitCode tells the caller of the command line how to end.
func (usageError) ExitCode() int { return wrongUse }

// Command returns `netagent lab` with all its verbs.
func Command() *cobra.Command {
	c := &cobra.Command{
		Use:   "lab",
		Short: "the playground: a cluster of network namespaces on this machine",
		Long: `Runs a whole cluster on one Linux machine, without Kubernetes: every node is a network namespace with the
real netagent and coredns in it, pods are connected by the real CNI plugin, and ordinary manifests say what runs.
The machine's own interfaces, routes and rules are not touched.`,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usage(c, fmt.Errorf("unknown verb %q", args[0]))
			}
			return c.Help()
		},
	}
	c.AddCommand(upCommand(), downCommand(), statusCommand(), podsCommand(), execCommand(), applyCommand(), deleteCommand(),
		killCommand(), readyCommand(), tourCommand(), daemonCommand(), spawnCommand())
	return c
}

// verb makes a subcommand with the flag --name. run gets the lab's name and the arguments.
func verb(use, short, example string, args cobra.PositionalArgs, run func(c *cobra.Command, name string, args []string) error) *cobra.Command {
	var name string
	c := &cobra.Command{Use: use, Short: short, Example: example,
		Args: func(c *cobra.Command, a []string) error {
			if err := args(c, a); err != nil {
				return usage(c, err)
			}
			return nil
		},
		RunE: func(c *cobra.Command, a []string) error { return run(c, name, a) },
	}
	c.Flags().StringVar(&name, "name", defaultName, "name of the playground")
	return c
}

func upCommand() *cobra.Command {
	o := &Options{}
	c := verb("up FILE|DIR…", "start a playground with these manifests and wait until all of it works",
		"  netagent lab up examples\n  netagent lab up --name two --nodes 2 --family v6 --backend host-gw shop.yaml", cobra.ArbitraryArgs,
		func(c *cobra.Command, name string, args []string) (err error) {
			o.Name = name
			if o.BinDir == "" {
				if o.BinDir, err = binDir(); err != nil {
					return err
				}
			}
			if err := o.validate(); err != nil {
				return usage(c, err)
			}
			return up(c.Context(), o, args, c.OutOrStdout())
		})
	f := c.Flags()
	f.IntVar(&o.Nodes, "nodes", defaultNodes, "number of nodes")
	f.StringVar(&o.Family, "family", families[0], "address families: "+strings.Join(families, ", "))
	f.StringVar(&o.Backend, "backend", backends[0], "how pods reach other nodes: "+strings.Join(backends, ", "))
	f.StringVar(&o.ServiceMode, "service-mode", serviceModes[0], "how services are translated: "+strings.Join(serviceModes, ", "))
	f.StringArrayVar(&o.AgentSettings, "agent-setting", nil, "'NAME: VALUE' for the agents, as in their file of settings; may be repeated")
	f.IntVar(&o.Links, "links", 1, "spread the nodes over this many networks, with a router between these")
	f.DurationVar(&o.Timeout, "timeout", defaultTimeout, "give up waiting after this long")
	f.StringVar(&o.Corefile, "corefile", "", "CoreDNS's configuration (default: Corefile.example beside the folder of the binaries)")
	f.StringVar(&o.BinDir, "bin-dir", "", "folder of netagent, coredns and braid (default: that of this program)")
	return c
}

// binDir is the folder this program is in: its sister programs are there too.
func binDir() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find the folder of this program: %w (give it with --bin-dir)", err)
	}
	return filepath.Dir(self), nil
}

func downCommand() *cobra.Command {
	var all bool
	c := verb("down", "remove every trace of a playground, also one that crashed", "  netagent lab down\n  netagent lab down --all", cobra.NoArgs,
		func(c *cobra.Command, name string, _ []string) error {
			if all {
				return downAll(c.OutOrStdout())
			}
			if err := checkName(name); err != nil {
				return usage(c, err)
			}
			return down(name, c.OutOrStdout())
		})
	c.Flags().BoolVar(&all, "all", false, "every playground of this machine")
	return c
}

// outputFlag adds -o; the returned function says whether JSON is wanted.
func outputFlag(c *cobra.Command) func() (bool, error) {
	format := c.Flags().StringP("output", "o", "text", "text or json")
	return func() (bool, error) {
		if *format != "text" && *format != "json" {
			return false, usage(c, fmt.Errorf("-o %q: use text or json", *format))
		}
		return *format == "json", nil
	}
}

func statusCommand() *cobra.Command {
	var asJSON func() (bool, error)
	c := verb("status", "show nodes, agents, CoreDNS and how many pods are ready", "", cobra.NoArgs,
		func(c *cobra.Command, name string, _ []string) error {
			json, err := asJSON()
			if err != nil {
				return err
			}
			var s Status
			if err := request(c, name, "GET", "/status", nil, &s); err != nil {
				return err
			}
			if json {
				return printJSON(c.OutOrStdout(), &s)
			}
			return s.text(c.OutOrStdout(), time.Now())
		})
	asJSON = outputFlag(c)
	return c
}

// request makes one call to a lab's daemon.
func request(c *cobra.Command, name, method, path string, body, answer any) error {
	cl, err := newClient(name)
	if err != nil {
		return err
	}
	return cl.call(c.Context(), method, path, body, answer)
}

// namespaceFlag adds -n.
func namespaceFlag(c *cobra.Command) *string {
	return c.Flags().StringP("namespace", "n", "default", "namespace of the pod")
}

func podsCommand() *cobra.Command {
	var all bool
	var namespace *string
	var asJSON func() (bool, error)
	c := verb("pods", "list pods with node, addresses and readiness, of all namespaces unless -n names one", "  netagent lab pods -n shop", cobra.NoArgs,
		func(c *cobra.Command, name string, _ []string) error {
			json, err := asJSON()
			if err != nil {
				return err
			}
			// A playground is small: unlike kubectl, nothing is hidden unless asked.
			if all || !c.Flags().Changed("namespace") {
				*namespace = ""
			}
			var pods []cluster.PodStatus
			if err := request(c, name, "GET", "/pods", nil, &pods); err != nil {
				return err
			}
			show := []cluster.PodStatus{}
			for _, p := range pods {
				if *namespace == "" || p.Namespace == *namespace {
					show = append(show, p)
				}
			}
			if json {
				return printJSON(c.OutOrStdout(), show)
			}
			if len(show) == 0 {
				fmt.Fprintln(c.ErrOrStderr(), "no pods")
				return nil
			}
			return printPods(c.OutOrStdout(), show, *namespace, time.Now())
		})
	c.Flags().BoolVarP(&all, "all-namespaces", "A", false, "pods of all namespaces (the default)")
	namespace, asJSON = namespaceFlag(c), outputFlag(c)
	return c
}

func execCommand() *cobra.Command {
	var namespace *string
	c := verb("exec [-n NAMESPACE] POD|node/NODE|outside -- COMMAND…", "run a command in a pod's network, with its resolv.conf",
		"  netagent lab exec web-0 -- dig +search kube-dns.kube-system\n  netagent lab exec node/n1 -- nft list ruleset\n  netagent lab exec outside -- curl 192.168.77.11:30080",
		func(_ *cobra.Command, args []string) error {
			if len(args) < 2 {
				return errors.New("say where and what to run, as in: netagent lab exec web-0 -- hostname")
			}
			return nil
		},
		func(_ *cobra.Command, name string, args []string) error {
			return execIn(name, *namespace, args[0], args[1:])
		})
	namespace = namespaceFlag(c)
	return c
}

func applyCommand() *cobra.Command {
	return verb("apply FILE|DIR|-…", "create or change objects while the playground runs", "  netagent lab apply shop.yaml", cobra.MinimumNArgs(1),
		func(c *cobra.Command, name string, args []string) error { return sendFiles(c, name, "/apply", args) })
}

func deleteCommand() *cobra.Command {
	return verb("delete FILE|DIR|-…", "delete the objects these manifests name", "  netagent lab delete shop.yaml", cobra.MinimumNArgs(1),
		func(c *cobra.Command, name string, args []string) error { return sendFiles(c, name, "/delete", args) })
}

func sendFiles(c *cobra.Command, name, path string, args []string) error {
	files, err := readManifests(args)
	if err != nil {
		return err
	}
	var a reportAnswer
	if err := request(c, name, "POST", path, filesRequest{files}, &a); err != nil {
		return err
	}
	for _, l := range a.Changes {
		fmt.Fprintln(c.OutOrStdout(), l)
	}
	for _, l := range a.Notes {
		fmt.Fprintln(c.ErrOrStderr(), "note:", l)
	}
	if len(a.Problems) > 0 {
		return errors.New(strings.Join(a.Problems, "\n"))
	}
	return nil
}

func killCommand() *cobra.Command {
	var signal string
	var namespace *string
	c := verb("kill [-n NAMESPACE] POD|node/NODE|node/NODE/netagent|node/NODE/coredns",
		"end a pod, a program of a node, or a node as a power cut does; the playground starts it again as Kubernetes would",
		"  netagent lab kill node/n1/netagent\n  netagent lab kill node/n1\n  netagent lab kill node/n2/coredns --signal TERM\n  netagent lab kill -n shop db-0", cobra.ExactArgs(1),
		func(c *cobra.Command, name string, args []string) error {
			target := args[0]
			if !strings.HasPrefix(target, "node/") {
				ns, pod := podTarget(*namespace, target)
				target = "pod/" + ns + "/" + pod
			}
			return request(c, name, "POST", "/kill", killRequest{Target: target, Signal: signal}, &struct{}{})
		})
	c.Flags().StringVar(&signal, "signal", "KILL", "signal for a node's program")
	namespace = namespaceFlag(c)
	return c
}

func readyCommand() *cobra.Command {
	var namespace *string
	c := verb("ready [-n NAMESPACE] POD true|false", "make a pod pass or fail its readiness probe", "  netagent lab ready web-0 false", cobra.ExactArgs(2),
		func(c *cobra.Command, name string, args []string) error {
			if args[1] != "true" && args[1] != "false" {
				return usage(c, fmt.Errorf("%q: say true or false", args[1]))
			}
			ns, pod := podTarget(*namespace, args[0])
			return request(c, name, "POST", "/ready", readyRequest{Namespace: ns, Name: pod, Ready: args[1] == "true"}, &struct{}{})
		})
	namespace = namespaceFlag(c)
	return c
}

// daemonCommand is what `up` starts in the background.
func daemonCommand() *cobra.Command {
	c := verb("daemon", "keep a playground running (started by up)", "", cobra.NoArgs,
		func(c *cobra.Command, name string, _ []string) error {
			return runDaemon(c.Context(), name, slog.New(slog.NewTextHandler(c.ErrOrStderr(), nil)))
		})
	c.Hidden = true
	return c
}

// spawnCommand is how the daemon starts a program inside namespaces: entering them takes mounts,
// which only the new process itself can make.
func spawnCommand() *cobra.Command {
	e := &entry{binds: map[string]string{}}
	var binds []string
	c := &cobra.Command{Use: "spawn", Hidden: true, Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			for _, b := range binds {
				file, at, ok := strings.Cut(b, ":")
				if !ok {
					return fmt.Errorf("--bind %q: want FILE:PATH", b)
				}
				e.binds[file] = at
			}
			e.argv, e.env = args, os.Environ()
			return e.enter()
		}}
	c.Flags().StringVar(&e.netns, "netns", "", "handle of the network namespace")
	c.Flags().StringVar(&e.hostname, "hostname", "", "host name to have there")
	c.Flags().StringArrayVar(&binds, "bind", nil, "FILE:PATH to show FILE at PATH")
	return c
}
