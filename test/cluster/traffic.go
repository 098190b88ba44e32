package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	faultsNamespace = "braid-faults"
	loadImage       = "braid.test/load:dev"
	webPort         = 8080
	statsPort       = 8090
)

// loadManifest runs the program load on every node, as a server behind a Service; clientManifest as a client
// of it. See load/main.go.
const loadManifest = `apiVersion: v1
kind: Namespace
metadata: {name: ` + faultsNamespace + `}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web, namespace: ` + faultsNamespace + `}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: web
        image: ` + loadImage + `
        imagePullPolicy: Never
        args: [serve, ":8080"]
        readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: ` + faultsNamespace + `}
spec:
  type: NodePort
  ipFamilyPolicy: PreferDualStack
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
`

const clientManifest = `apiVersion: apps/v1
kind: DaemonSet
metadata: {name: NAME, namespace: NAMESPACE}
spec:
  selector: {matchLabels: {app: NAME}}
  template:
    metadata: {labels: {app: NAME}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: load
        image: ` + loadImage + `
        imagePullPolicy: Never
        args: ARGS
        readinessProbe: {tcpSocket: {port: 8090}, periodSeconds: 1}
`

// traffic is load that runs: clients in a pod on every node and one outside of the cluster, and those of walls.
type traffic struct {
	clients map[string]string // where to ask for counts, by who
	http    *http.Client
	walls   *walls
}

// count is load's Count.
type count struct {
	OK, Failed, Slow, Starved int
	Worst                     time.Duration
	Errors                    []string
}

// startTraffic starts servers and clients and waits until all of them run.
func startTraffic(ctx context.Context, o *options, a *api) (*traffic, error) {
	if err := loadProgram(ctx, o); err != nil {
		return nil, err
	}
	if err := o.apply(ctx, loadManifest+o.wallsManifest()); err != nil {
		return nil, err
	}
	web, err := a.awaitPods(ctx, faultsNamespace, "app=web", o.Nodes)
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, o.explain(ctx))
	}
	var svc, dns checkService
	if err := errors.Join(a.get(ctx, "/api/v1/namespaces/"+faultsNamespace+"/services/web", &svc),
		a.get(ctx, "/api/v1/namespaces/kube-system/services/kube-dns", &dns)); err != nil {
		return nil, err
	}
	inside, outside := trafficArgs(o, web, svc, dns)
	w, err := newWalls(ctx, o, a, web)
	if err != nil {
		return nil, err
	}
	manifest, err := clientManifests(map[string][]string{faultsNamespace + "/load": inside, friends + "/friend": w.friend, strangers + "/stranger": w.stranger})
	if err != nil {
		return nil, err
	}
	if err := o.apply(ctx, manifest); err != nil {
		return nil, err
	}
	outside = append(outside, w.outside...)
	argv := append([]string{o.path("bin", "load")}, outside...)
	if err := start(ctx, o, control, job{Name: "load", Argv: argv}); err != nil {
		return nil, err
	}
	t := &traffic{http: &http.Client{Transport: o.transport()}, clients: map[string]string{"outside": statsURL("127.0.0.1")}, walls: w}
	for namespace, name := range map[string]string{faultsNamespace: "load", friends: "friend", strangers: "stranger"} {
		pods, err := a.awaitPods(ctx, namespace, "app="+name, o.Nodes)
		if err != nil {
			return nil, fmt.Errorf("%w\n%s", err, o.explain(ctx))
		}
		for _, p := range pods {
			t.clients[name+" on "+p.Spec.NodeName] = statsURL(p.Status.PodIPs[0].IP)
			if name != "load" {
				w.forbid(name, p)
			}
		}
	}
	return t, nil
}

// clientManifests are DaemonSets of load, by namespace/name, with their arguments.
func clientManifests(clients map[string][]string) (string, error) {
	var out []string
	for _, key := range slices.Sorted(maps.Keys(clients)) {
		args, err := json.Marshal(clients[key])
		if err != nil {
			return "", err
		}
		namespace, name, _ := strings.Cut(key, "/")
		out = append(out, strings.NewReplacer("NAMESPACE", namespace, "NAME", name, "ARGS", string(args)).Replace(clientManifest))
	}
	return strings.Join(out, "---\n"), nil
}

func statsURL(ip string) string {
	return fmt.Sprintf("http://%s/take", netip.AddrPortFrom(netip.MustParseAddr(ip), statsPort))
}

// trafficArgs are the command lines of the clients in pods and of the one outside.
func trafficArgs(o *options, web []pod, svc, dns checkService) (inside, outside []string) {
	inside = []string{"run", "--ask", fmt.Sprintf("web.%s.svc.cluster.local=%s", faultsNamespace, svc.Spec.ClusterIPs[0])}
	outside = []string{"run", "--stats", fmt.Sprintf("127.0.0.1:%d", statsPort)}
	tcp := func(to *[]string, name, addr string, port uint16) {
		target := name + "=" + netip.AddrPortFrom(netip.MustParseAddr(addr), port).String()
		*to = append(*to, "--tcp", target, "--hold", target)
	}
	for _, ip := range svc.Spec.ClusterIPs {
		tcp(&inside, "cluster IP "+ip.String(), ip.String(), 80)
		for i := range o.Nodes {
			for _, f := range o.families() {
				if f.control.Is4() == ip.Is4() {
					name := fmt.Sprintf("node port of %s, %s", nodeName(i+1), f.name)
					tcp(&inside, name, f.node(i+1).String(), svc.Spec.Ports[0].NodePort)
					tcp(&outside, name, f.node(i+1).String(), svc.Spec.Ports[0].NodePort)
				}
			}
		}
	}
	for _, p := range web {
		for _, ip := range p.Status.PodIPs {
			tcp(&inside, "pod "+ip.IP+" on "+p.Spec.NodeName, ip.IP, webPort)
		}
	}
	for _, ip := range dns.Spec.ClusterIPs {
		inside = append(inside, "--dns", "DNS "+ip.String()+"="+netip.AddrPortFrom(ip, 53).String())
	}
	return inside, outside
}

// loadProgram builds the program and gives it to every node as an image.
func loadProgram(ctx context.Context, o *options) error {
	bin, archive := o.path("bin", "load"), o.path("load.tar")
	cmd := exec.CommandContext(ctx, "go", "build", "-mod=readonly", "-ldflags", "-s -w", "-o", bin, "./load")
	cmd.Dir, cmd.Env = filepath.Join(o.Root, "test/cluster"), append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if _, err := run(cmd); err != nil {
		return err
	}
	layer := archive + ".layer"
	if err := fileLayer(layer, map[string]string{"load": bin}); err != nil {
		return err
	}
	if err := writeArchive(archive, image{names: []string{loadImage}, entry: []string{"/load"}, layers: []string{layer}}); err != nil {
		return err
	}
	return o.everyNode(func(i int) error { return importImage(ctx, o, nodeName(i), archive) })
}

// stopTraffic removes what startTraffic made, also what an earlier one left.
func stopTraffic(ctx context.Context, o *options) error {
	jobs, err := ask(ctx, o, control, request{})
	if err == nil && jobs["load"].PID != 0 {
		_, err = ask(ctx, o, control, request{Stop: "load", Signal: 9})
	}
	_, gone := o.kubectl(ctx, "delete", "namespace", faultsNamespace, guarded, friends, strangers, "--ignore-not-found")
	return errors.Join(err, gone)
}

// take returns what became of the probes since the last time, by "WHO: NAME". It waits until those under way
// have ended.
func (t *traffic) take(ctx context.Context) (map[string]count, error) {
	type answer struct {
		who    string
		counts map[string]count
		err    error
	}
	answers := make(chan answer)
	for who, url := range t.clients {
		go func() {
			a := answer{who: who}
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
			if err == nil {
				var resp *http.Response
				if resp, err = t.http.Do(req); err == nil {
					err = json.NewDecoder(resp.Body).Decode(&a.counts)
					resp.Body.Close()
				}
			}
			a.err = err
			answers <- a
		}()
	}
	all := map[string]count{}
	var errs []error
	for range t.clients {
		a := <-answers
		errs = append(errs, a.err)
		for name, c := range a.counts {
			all[a.who+": "+name] = c
		}
	}
	return all, errors.Join(errs...)
}

// tally sums up counts by kind of probe.
type tally struct {
	connections, questions, datagrams count
	allowed                           count // connections that policies allow
	forbidden                         count // tries of such as they do not: OK is refused, Failed got through
	starved                           int   // of all: the machine was too busy to judge them
}

// broken is how much of what has to succeed failed, or the other way round.
func (t tally) broken() int {
	return t.connections.Failed + t.questions.Failed + t.allowed.Failed + t.forbidden.Failed
}

// whole reports whether there was something of every kind.
func (t tally) whole() bool {
	return t.connections.OK > 0 && t.questions.OK > 0 && t.allowed.OK > 0 && t.forbidden.OK > 0
}

// sum adds up, and lists what failed.
func sum(all map[string]count) (t tally, failures []string) {
	for _, name := range slices.Sorted(maps.Keys(all)) {
		c, into := all[name], &t.connections
		switch {
		case strings.Contains(name, ": "+neverWord):
			into = &t.forbidden
		case strings.Contains(name, ": "+allowedWord):
			into = &t.allowed
		case strings.HasSuffix(name, "datagrams"):
			into = &t.datagrams
		case strings.Contains(name, ": DNS"):
			into = &t.questions
		}
		into.OK, into.Failed, into.Slow = into.OK+c.OK, into.Failed+c.Failed, into.Slow+c.Slow
		t.starved += c.Starved
		into.Worst = max(into.Worst, c.Worst)
		if c.Failed > 0 {
			failures = append(failures, fmt.Sprintf("%s: %d of %d failed: %s", name, c.Failed, c.Failed+c.OK, strings.Join(c.Errors, "; ")))
		}
	}
	return t, failures
}

func (t tally) String() string {
	text := fmt.Sprintf("connections %d, failed %d, slow %d, worst %s · by policy allowed %d, failed %d; forbidden %d, let through %d · DNS questions %d, unanswered %d · single datagrams %d, lost %d",
		t.connections.OK+t.connections.Failed, t.connections.Failed, t.connections.Slow, t.connections.Worst.Round(time.Millisecond),
		t.allowed.OK+t.allowed.Failed, t.allowed.Failed, t.forbidden.OK+t.forbidden.Failed, t.forbidden.Failed,
		t.questions.OK+t.questions.Failed, t.questions.Failed, t.datagrams.OK+t.datagrams.Failed, t.datagrams.Failed)
	if t.starved > 0 {
		text += fmt.Sprintf(" · not judged, since the machine was too busy %d", t.starved)
	}
	return text
}
