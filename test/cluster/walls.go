package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// The namespaces of walls: servers that policies guard, clients that may reach them and nothing else, and clients
// that may reach everything but them.
const (
	guarded   = "braid-guarded"
	friends   = "braid-friends"
	strangers = "braid-strangers"

	closedPort = 8081 // of the guarded servers: nobody may reach it

	neverWord, allowedWord = "never ", "allowed "
)

// wallsManifest isolates the guarded servers in both directions, and lets in, to their port web by its name, friends by
// their namespace and what is outside by its address. Friends are isolated in what they send.
func (o *options) wallsManifest() string { return o.wallsOf("friends") }

// wallsOf lets another team in, to which nobody belongs yet.
func (o *options) wallsOf(team string) string {
	var blocks []string
	for _, f := range o.families() {
		var nodes []string
		for i := range o.Nodes {
			nodes = append(nodes, fmt.Sprintf("%q", netip.PrefixFrom(f.node(i+1), f.control.BitLen()).String()))
		}
		blocks = append(blocks, fmt.Sprintf("{ipBlock: {cidr: %q, except: [%s]}}", f.underlay, strings.Join(nodes, ", ")))
	}
	return strings.NewReplacer("BLOCKS", strings.Join(blocks, ", "), "GUARDED", guarded, "FRIENDS", friends, "STRANGERS", strangers,
		"IMAGE", loadImage, "TEAM", team).Replace(wallsTemplate)
}

const wallsTemplate = `---
apiVersion: v1
kind: Namespace
metadata: {name: GUARDED}
---
apiVersion: v1
kind: Namespace
metadata: {name: FRIENDS}
---
apiVersion: v1
kind: Namespace
metadata: {name: STRANGERS}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: default-deny, namespace: GUARDED}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: GUARDED}
spec:
  podSelector: {matchLabels: {app: guarded}}
  ingress:
  - from: [{namespaceSelector: {matchLabels: {team: TEAM}}, podSelector: {matchLabels: {app: friend}}}]
    ports: [{port: web}]
  - from: [BLOCKS]
    ports: [{port: web}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: guarded-only, namespace: FRIENDS}
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress:
  - to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: GUARDED}}}]
    ports: [{port: web}]
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: guarded, namespace: GUARDED}
spec:
  selector: {matchLabels: {app: guarded}}
  template:
    metadata: {labels: {app: guarded}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: guarded
        image: IMAGE
        imagePullPolicy: Never
        args: [serve, ":8080", ":8081", ":8082"]
        ports: [{name: web, containerPort: 8080}]
        readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: guarded, namespace: GUARDED}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {app: guarded}
  ports: [{port: 80, targetPort: web}]
`

// walls are the guarded servers, and what load is told of them.
type walls struct {
	friend, stranger, outside []string // command lines

	servers   []pod
	forbidden map[string]bool           // what no server may accept, as "CLIENT PORT"
	before    map[string]map[string]int // what servers had accepted of these when they were last asked
}

// newWalls waits for the guarded servers. web are pods that anybody may reach but friends.
func newWalls(ctx context.Context, o *options, a *api, web []pod) (*walls, error) {
	if err := a.setTeam(ctx, friends, "friends"); err != nil {
		return nil, err
	}
	servers, err := a.awaitPods(ctx, guarded, "app=guarded", o.Nodes)
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, o.explain(ctx))
	}
	var svc checkService
	if err := a.get(ctx, "/api/v1/namespaces/"+guarded+"/services/guarded", &svc); err != nil {
		return nil, err
	}
	w := &walls{servers: servers, forbidden: map[string]bool{}, before: map[string]map[string]int{}}
	for _, list := range []*[]string{&w.friend, &w.stranger} {
		*list = []string{"run", "--every", "50ms"}
	}
	for _, f := range o.families() {
		w.forbidden[fmt.Sprintf("%s %d", f.control, closedPort)] = true
	}
	may := func(list *[]string, name string, to netip.AddrPort) {
		target := fmt.Sprintf("%s%s=%s", allowedWord, name, to)
		*list = append(*list, "--tcp", target, "--hold", target)
	}
	never := func(list *[]string, name string, to netip.AddrPort) {
		*list = append(*list, "--never", fmt.Sprintf("%s%s=%s", neverWord, name, to))
	}
	each(servers, func(name string, addr netip.Addr) {
		open, closed := netip.AddrPortFrom(addr, webPort), netip.AddrPortFrom(addr, closedPort)
		may(&w.friend, name, open)
		may(&w.outside, name, open)
		never(&w.friend, name+", closed port", closed)
		never(&w.outside, name+", closed port", closed)
		never(&w.stranger, name, open)
	})
	each(web, func(name string, addr netip.Addr) {
		never(&w.friend, name, netip.AddrPortFrom(addr, webPort))
		may(&w.stranger, name, netip.AddrPortFrom(addr, webPort))
	})
	for _, addr := range svc.Spec.ClusterIPs {
		may(&w.friend, "service "+addr.String(), netip.AddrPortFrom(addr, 80))
		never(&w.stranger, "service "+addr.String(), netip.AddrPortFrom(addr, 80))
	}
	return w, nil
}

// setTeam labels a namespace, or takes the label away.
func (a *api) setTeam(ctx context.Context, namespace, team string) error {
	labels := map[string]any{"team": team}
	if team == "" {
		labels["team"] = nil
	}
	return a.do(ctx, http.MethodPatch, "/api/v1/namespaces/"+namespace, map[string]any{"metadata": map[string]any{"labels": labels}}, nil)
}

// each calls fn for all addresses of pods.
func each(pods []pod, fn func(name string, addr netip.Addr)) {
	for _, p := range pods {
		for _, ip := range p.Status.PodIPs {
			fn(fmt.Sprintf("%s %s on %s", p.Metadata.Namespace, ip.IP, p.Spec.NodeName), netip.MustParseAddr(ip.IP))
		}
	}
}

// forbid notes what the servers may not accept from a client.
func (w *walls) forbid(client string, p pod) {
	for _, ip := range p.Status.PodIPs {
		w.forbidden[fmt.Sprintf("%s %d", ip.IP, closedPort)] = true
		if client == "stranger" {
			w.forbidden[fmt.Sprintf("%s %d", ip.IP, webPort)] = true
		}
	}
}

// accepted asks the servers what they have accepted since the last time that they should not have: packets that got
// there, whatever their senders saw.
func (w *walls) accepted(ctx context.Context, o *options) (out []string, err error) {
	for _, p := range w.servers {
		var all map[string]int
		// Its own node reaches every pod.
		err := await(ctx, p.Metadata.Name+" to say what it accepted", time.Minute, func() error {
			addr := netip.MustParseAddr(p.Status.PodIPs[0].IP)
			text, err := o.askLoad(p.Spec.NodeName, netip.AddrPortFrom(addr, webPort), "accepted")
			return errors.Join(err, json.Unmarshal([]byte(text), &all))
		})
		if err != nil {
			return nil, err
		}
		maps.DeleteFunc(all, func(who string, _ int) bool { return !w.forbidden[who] })
		for _, who := range slices.Sorted(maps.Keys(all)) {
			if n := all[who] - w.before[p.Metadata.UID][who]; n != 0 {
				client, port, _ := strings.Cut(who, " ")
				out = append(out, fmt.Sprintf("%s on %s accepted %d connections of %s to port %s", p.Metadata.Name, p.Spec.NodeName, n, client, port))
			}
		}
		w.before[p.Metadata.UID] = all
	}
	return out, nil
}

// askLoad sends a line to a load server from a node, and returns what it answers.
func (o *options) askLoad(node string, to netip.AddrPort, line string) (answer string, err error) {
	err = within(o.nsName(node), func() error {
		conn, err := net.DialTimeout("tcp", to.String(), time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
			return err
		}
		if _, err := io.WriteString(conn, line+"\n"); err != nil {
			return err
		}
		answer, err = bufio.NewReader(conn).ReadString('\n')
		return err
	})
	return strings.TrimSpace(answer), err
}
