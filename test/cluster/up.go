package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"
)

// list is a flag that takes files, separated by commas or given several times.
type list []string

func (l *list) String() string { return strings.Join(*l, ",") }

func (l *list) Set(s string) error {
	*l = append(*l, strings.Split(s, ",")...)
	return nil
}

func upOptions(args []string) (*options, error) {
	o := &options{}
	f := flags("up", o)
	var images, settings list
	f.IntVar(&o.Nodes, "nodes", 2, "how many")
	fam := f.String("family", "v4", "addresses: v4, v6 or dual")
	f.Var(&images, "images", "image archive to load into every node; may be repeated")
	f.StringVar(&o.Deploy, "deploy", "deploy/braid.yaml", "manifest that installs the network; empty = none")
	f.BoolVar(&o.Host, "host-agent", false, "run bin/netagent as a program of each node, instead of --deploy")
	f.StringVar(&o.Network, "network", networkBraid, "braid, or stock: the reference CNI plugins, kube-proxy and CoreDNS")
	f.Var(&settings, "agent-setting", "line for the agents' settings in --deploy, as 'log-level: debug'; may be repeated")
	f.BoolVar(&o.Balancer, "load-balancer", false, "give Services of type LoadBalancer addresses, which the control plane's network reaches")
	f.IntVar(&o.Zones, "zones", 0, "label the nodes with this many zones, in turn")
	f.StringVar(&o.Gates, "feature-gates", "", "feature gates of all of Kubernetes' programs, as NAME=true,…")
	rest, err := parse(f, o, args)
	if err != nil {
		return nil, err
	}
	if len(rest) > 0 {
		images = append(images, rest...) // `--images a.tar b.tar`
	}
	if o.Nodes < 1 || o.Nodes > maxNodes {
		return nil, usageError{fmt.Errorf("nodes: %d is out of range: use 1 to %d", o.Nodes, maxNodes)}
	}
	if err := o.setFamilies(*fam); err != nil {
		return nil, err
	}
	for _, name := range images {
		path, err := o.userFile(name)
		if err != nil {
			return nil, err
		}
		o.Images = append(o.Images, path)
	}
	o.Settings = settings
	if o.Network != networkBraid && o.Network != networkStock {
		return nil, usageError{fmt.Errorf("network %q: use %s or %s", o.Network, networkBraid, networkStock)}
	}
	if o.Host || o.Network == networkStock {
		o.Deploy = ""
	}
	if o.Deploy != "" {
		if o.Deploy, err = o.userFile(o.Deploy); err != nil {
			return nil, err
		}
	}
	return o, runcPresent()
}

func runUp(ctx context.Context, args []string) error {
	o, err := upOptions(args)
	if err != nil {
		return err
	}
	if old, err := spaces(o.Name); err != nil || len(old) > 0 {
		return errors.Join(err, fmt.Errorf("cluster %s is there already: `down` removes it, --name makes another", o.Name))
	}
	return begin(ctx, o)
}

// begin builds what the cache lacks and starts the cluster.
func begin(ctx context.Context, o *options) error {
	all := programs()
	if o.Network == networkStock {
		all = append(all, stockPrograms()...)
	}
	if o.Balancer {
		p, err := o.balancer()
		if err != nil {
			return err
		}
		all = append(all, p)
	}
	if err := build(ctx, o, all...); err != nil {
		return err
	}
	if err := buildImages(ctx, o); err != nil {
		return err
	}
	begin := time.Now()
	say := func(format string, a ...any) {
		fmt.Printf("%6.1fs  %s\n", time.Since(begin).Seconds(), fmt.Sprintf(format, a...))
	}
	if err := up(ctx, o, say); err != nil {
		return fmt.Errorf("%w\nwhat was started stays for a look: `status`, logs in %s; `down` removes it", err, o.State)
	}
	say("cluster %s is up: `kubectl get pods -A`, `check`, `down`", o.Name)
	return nil
}

func up(ctx context.Context, o *options, say func(string, ...any)) error {
	if err := o.save(); err != nil {
		return err
	}
	if err := writeCredentials(o); err != nil {
		return err
	}
	if err := buildTopology(o); err != nil {
		return err
	}
	if err := startControl(ctx, o); err != nil {
		return err
	}
	say("control plane ready at %s", o.server())
	if err := o.everyNode(func(i int) error { return startNode(ctx, o, i) }); err != nil {
		return err
	}
	if err := joinPods(ctx, o); err != nil {
		return err
	}
	say("%d nodes registered", o.Nodes)
	if err := o.labelZones(ctx); err != nil {
		return err
	}
	return o.network(ctx, say)
}

// labelZones deals the nodes to the zones in turn.
func (o *options) labelZones(ctx context.Context) error {
	for i := 0; i < o.Nodes && o.Zones > 0; i++ {
		zone := fmt.Sprintf("topology.kubernetes.io/zone=zone%d", i%o.Zones+1)
		if _, err := o.kubectl(ctx, "label", "node", nodeName(i+1), zone); err != nil {
			return err
		}
	}
	return nil
}

// network installs what the cluster is for, and waits until every node is Ready.
func (o *options) network(ctx context.Context, say func(string, ...any)) error {
	switch {
	case o.Network == networkStock:
		if err := o.stock(ctx); err != nil {
			return fmt.Errorf("install the stock network: %w", err)
		}
	case o.Host:
		if err := o.everyNode(func(i int) error { return hostAgent(ctx, o, i) }); err != nil {
			return err
		}
	case o.Deploy != "":
		if err := o.install(ctx); err != nil {
			return fmt.Errorf("install %s: %w", o.Deploy, err)
		}
	default:
		say("no network is installed, so nodes stay NotReady")
		return nil
	}
	if _, err := o.kubectl(ctx, "wait", "--for=condition=Ready", "nodes", "--all", "--timeout=180s"); err != nil {
		return fmt.Errorf("%w\n%s", err, o.explain(ctx))
	}
	say("nodes Ready")
	if o.Host {
		return nil
	}
	if _, err := o.kubectl(ctx, "wait", "--for=condition=Ready", "pods", "--all", "-n", "kube-system", "--timeout=180s"); err != nil {
		return fmt.Errorf("%w\n%s", err, o.explain(ctx))
	}
	say("pods of kube-system Ready")
	return nil
}

// install applies the manifest as its administrator would: first where the agents find the API server, as a
// field of our own that the manifest leaves alone, and with the cluster's DNS address where its primary
// family has another one.
func (o *options) install(ctx context.Context, args ...string) error {
	place := fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"braid-api-server","namespace":"kube-system"},"data":{"host":%q,"port":"%d"}}`,
		o.families()[0].control, apiPort)
	if err := o.apply(ctx, place, append([]string{"--field-manager=administrator"}, args...)...); err != nil {
		return err
	}
	manifest, err := os.ReadFile(o.Deploy)
	if err != nil {
		return err
	}
	text := strings.ReplaceAll(string(manifest), "clusterIP: "+families["v4"].dns.String(), fmt.Sprintf("clusterIP: %q", o.families()[0].dns))
	for _, line := range o.Settings {
		text = withAgentSetting(text, line)
	}
	return o.apply(ctx, text, args...)
}

// withAgentSetting returns a manifest whose settings of the agents have the line, in place of the one for
// the same setting, if there is one.
func withAgentSetting(manifest, line string) string {
	head, rest, _ := strings.Cut(manifest, agentSettings)
	key, _, _ := strings.Cut(line, ":")
	block, tail, _ := strings.Cut(rest, "\n---\n")
	var lines []string
	for _, l := range strings.Split(block, "\n") {
		if !strings.HasPrefix(l, "    "+key+":") {
			lines = append(lines, l)
		}
	}
	return head + agentSettings + "    " + line + "\n" + strings.Join(lines, "\n") + "\n---\n" + tail
}

// agentSettings begins the agents' settings in the manifest.
const agentSettings = "  netagent.yaml: |\n"

// apply sends a manifest by server-side apply.
func (o *options) apply(ctx context.Context, manifest string, args ...string) error {
	cmd, err := o.command(ctx, control, false, append([]string{o.bin("kubectl"), "apply", "--server-side", "-f", "-"}, args...)...)
	if err != nil {
		return err
	}
	cmd.Stdin = strings.NewReader(manifest)
	_, err = run(cmd)
	return err
}

// explain collects what a person would look at first.
func (o *options) explain(ctx context.Context) string {
	pods, err := o.kubectl(ctx, "get", "nodes,pods", "-A", "-o", "wide")
	events, err2 := o.kubectl(ctx, "get", "events", "-A", "--field-selector=type=Warning", "--sort-by=.lastTimestamp")
	if err := errors.Join(err, err2); err != nil {
		return err.Error()
	}
	return pods + events
}

// everyNode runs fn for all nodes at once.
func (o *options) everyNode(fn func(i int) error) error {
	errs := make([]error, o.Nodes)
	var wg sync.WaitGroup
	for i := range o.Nodes {
		wg.Go(func() { errs[i] = fn(i + 1) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

const optionsFile = "cluster.json"

// save makes the cluster's folder, with its settings and this program, which outlives `go run`.
func (o *options) save() error {
	if err := os.MkdirAll(o.path("bin"), 0o755); err != nil {
		return err
	}
	data, err := json.MarshalIndent(o, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(o.path(optionsFile), data, 0o644); err != nil {
		return err
	}
	return copyFile("/proc/self/exe", o.path("bin", "cluster"), 0o755)
}

// load reads the settings of the running cluster that a command line means.
func load(cmd string, args []string) (*options, []string, error) {
	o := &options{}
	rest, err := parse(flags(cmd, o), o, args)
	if err != nil {
		return nil, nil, err
	}
	return o, rest, o.read()
}

// read takes the settings of a running cluster.
func (o *options) read() error {
	data, err := os.ReadFile(o.path(optionsFile))
	if os.IsNotExist(err) {
		return fmt.Errorf("there is no cluster %s: `up` starts one", o.Name)
	}
	if err != nil {
		return err
	}
	return json.Unmarshal(data, o)
}

func runKubectl(ctx context.Context, args []string) error {
	// Everything after the word is kubectl's: flags of ours come from the environment.
	o, _, err := load("kubectl", nil)
	if err != nil {
		return err
	}
	return attach(ctx, o, control, false, append([]string{o.bin("kubectl")}, args...))
}

func runExec(ctx context.Context, args []string) error {
	o, rest, err := load("exec", args)
	if err != nil {
		return err
	}
	if len(rest) < 2 {
		return usageError{fmt.Errorf("exec: say where (%s) and what", strings.Join(o.places(), ", "))}
	}
	return attach(ctx, o, rest[0], rest[0] != control, rest[1:])
}

// attach runs a command inside a place with our own terminal.
func attach(ctx context.Context, o *options, place string, whole bool, argv []string) error {
	cmd, err := o.command(ctx, place, whole, argv...)
	if err != nil {
		return err
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// An interrupt reaches the command from the terminal: let it decide.
	signal.Ignore(syscall.SIGINT)
	return cmd.Run()
}

func runLoad(ctx context.Context, args []string) error {
	o, files, err := load("load", args)
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return usageError{errors.New("load: name image archives")}
	}
	for n, name := range files {
		if files[n], err = o.userFile(name); err != nil {
			return err
		}
	}
	return o.everyNode(func(i int) error {
		for _, f := range files {
			if err := importImage(ctx, o, nodeName(i), f); err != nil {
				return err
			}
			fmt.Printf("%s: loaded %s\n", nodeName(i), filepath.Base(f))
		}
		return nil
	})
}

func runStatus(ctx context.Context, args []string) error {
	o, _, err := load("status", args)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "PLACE\tPROGRAM\tSTATE\tLOG")
	for _, place := range o.places() {
		jobs, err := ask(ctx, o, place, request{})
		if err != nil {
			fmt.Fprintf(w, "%s\t-\t%v\t\n", place, err)
		}
		for _, name := range slices.Sorted(maps.Keys(jobs)) {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", place, name, jobs[name].Status, o.log(place, name))
		}
	}
	return w.Flush()
}
