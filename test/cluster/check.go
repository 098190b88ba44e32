package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

const checkNamespace = "braid-check"

// checkHostPort is a port of the nodes that leads to the server on that node.
const checkHostPort = 18080

// checkManifest spreads servers over the nodes. Each answers /hostname with its pod's name and /clientip
// with who asks.
const checkManifest = `apiVersion: v1
kind: Namespace
metadata: {name: ` + checkNamespace + `}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: ` + checkNamespace + `}
spec:
  replicas: %d
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: web}}}
      containers:
      - name: web
        image: ` + testImage + `
        imagePullPolicy: Never
        args: [netexec, --http-port=8080, --udp-port=-1]
        ports: [{containerPort: 8080, hostPort: %d}]
        readinessProbe: {httpGet: {path: /hostname, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: ` + checkNamespace + `}
spec:
  type: NodePort
  ipFamilyPolicy: PreferDualStack
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
`

// checker asks questions of a cluster and keeps count.
type checker struct {
	ctx           context.Context
	o             *options
	quiet         bool // print wrong answers only
	asked, failed int
}

type checkPod struct {
	Metadata struct{ Name string }
	Spec     struct{ NodeName string }
	Status   struct{ PodIPs []struct{ IP netip.Addr } }
}

type checkService struct {
	Spec struct {
		ClusterIPs []netip.Addr
		Ports      []struct{ NodePort uint16 }
	}
}

func runCheck(ctx context.Context, args []string) error {
	o, _, err := load("check", args)
	if err != nil {
		return err
	}
	c := &checker{ctx: ctx, o: o}
	if err := c.whole(); err != nil {
		return err
	}
	if c.failed > 0 {
		return fmt.Errorf("%d of %d answers are wrong", c.failed, c.asked)
	}
	fmt.Printf("%d answers, all right\n", c.asked)
	return nil
}

// whole asks everything and tidies up.
func (c *checker) whole() error {
	err := c.run()
	_, gone := c.o.kubectl(c.ctx, "delete", "namespace", checkNamespace, "--ignore-not-found")
	return errors.Join(err, gone)
}

func (c *checker) run() error {
	begin := time.Now()
	if err := c.o.apply(c.ctx, fmt.Sprintf(checkManifest, min(2, c.o.Nodes), checkHostPort)); err != nil {
		return err
	}
	if _, err := c.o.kubectl(c.ctx, "rollout", "status", "-n", checkNamespace, "deployment/web", "--timeout=120s"); err != nil {
		return fmt.Errorf("%w\n%s", err, c.o.explain(c.ctx))
	}
	if !c.quiet {
		fmt.Printf("pods Running and Ready after %.1fs\n", time.Since(begin).Seconds())
	}
	var pods struct{ Items []checkPod }
	var svc checkService
	if err := errors.Join(c.get(&pods, "pods", "-l", "app=web"), c.get(&svc, "service", "web")); err != nil {
		return err
	}
	var names []string
	for _, p := range pods.Items {
		names = append(names, p.Metadata.Name)
	}
	for _, p := range pods.Items {
		c.fromPod(p, pods.Items, svc, names)
	}
	for i := range c.o.Nodes {
		for _, f := range c.o.families() {
			if slices.ContainsFunc(svc.Spec.ClusterIPs, func(a netip.Addr) bool { return a.Is4() == f.control.Is4() }) {
				c.toNode(nodeName(i+1), f.node(i+1), pods.Items, svc, names)
			}
		}
	}
	return nil
}

// toNode asks the ports of a node from outside, from every node, and from every pod.
func (c *checker) toNode(node string, addr netip.Addr, pods []checkPod, svc checkService, names []string) {
	port := netip.AddrPortFrom(addr, svc.Spec.Ports[0].NodePort)
	hostPort := netip.AddrPortFrom(addr, checkHostPort)
	i := slices.IndexFunc(pods, func(p checkPod) bool { return p.Spec.NodeName == node })
	for _, place := range c.o.places() {
		c.from(place, port, names)
		if i >= 0 {
			c.from(place, hostPort, []string{pods[i].Metadata.Name})
		}
	}
	for _, p := range pods {
		who := fmt.Sprintf("%s on %s", p.Metadata.Name, p.Spec.NodeName)
		c.ask(who, p, names, "curl", "-gsS", "-m5", fmt.Sprintf("http://%s/hostname", port))
		if i >= 0 {
			c.ask(who, p, []string{pods[i].Metadata.Name}, "curl", "-gsS", "-m5", fmt.Sprintf("http://%s/hostname", hostPort))
		}
	}
}

// get decodes an object of the check's namespace.
func (c *checker) get(into any, args ...string) error {
	text, err := c.o.kubectl(c.ctx, append([]string{"get", "-n", checkNamespace, "-o", "json"}, args...)...)
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(text), into)
}

// fromPod asks from one pod for the service's name, the service, and every pod.
func (c *checker) fromPod(from checkPod, pods []checkPod, svc checkService, names []string) {
	who := fmt.Sprintf("%s on %s", from.Metadata.Name, from.Spec.NodeName)
	for _, ip := range svc.Spec.ClusterIPs {
		kind := "A"
		if ip.Is6() {
			kind = "AAAA"
		}
		c.ask(who, from, []string{ip.String()}, "dig", "+short", "+search", "+tries=2", "+time=2", "web", kind)
		c.ask(who, from, []string{"web." + checkNamespace + ".svc.cluster.local."}, "dig", "+short", "+tries=2", "+time=2", "-x", ip.String())
		c.ask(who, from, names, "curl", "-gsS", "-m5", fmt.Sprintf("http://%s/hostname", netip.AddrPortFrom(ip, 80)))
	}
	c.ask(who, from, names, "curl", "-sS", "-m5", "http://web."+checkNamespace+"/hostname")
	for _, to := range pods {
		for _, ip := range to.Status.PodIPs {
			// The server sees the pod's own address: nothing between pods is masqueraded.
			i := slices.IndexFunc(from.Status.PodIPs, func(p struct{ IP netip.Addr }) bool { return p.IP.Is4() == ip.IP.Is4() })
			c.ask(who, from, []string{from.Status.PodIPs[i].IP.String()}, "sh", "-c",
				fmt.Sprintf("curl -gsS -m5 http://%s/clientip | sed 's/:[0-9]*$//; s/[][]//g'", netip.AddrPortFrom(ip.IP, 8080)))
		}
	}
}

// ask runs a command in a pod and judges what it prints.
func (c *checker) ask(who string, from checkPod, want []string, argv ...string) {
	out, err := c.o.kubectl(c.ctx, append([]string{"exec", "-n", checkNamespace, from.Metadata.Name, "--"}, argv...)...)
	c.judge(who+": "+strings.Join(argv, " "), strings.TrimSpace(out), err, want)
}

func (c *checker) judge(question, answer string, err error, want []string) {
	c.asked++
	verdict := "ok   "
	if err != nil || !slices.Contains(want, answer) {
		verdict = "WRONG"
		c.failed++
		answer = fmt.Sprintf("%q, want one of %q", answer, want)
		if err != nil {
			answer += ": " + err.Error()
		}
	}
	if !c.quiet || verdict == "WRONG" {
		fmt.Printf("%s  %s → %s\n", verdict, question, answer)
	}
}

// from asks a server from a node's own network, or from the control plane's, which is outside of the cluster.
func (c *checker) from(place string, addr netip.AddrPort, names []string) {
	var answer string
	err := within(c.o.nsName(place), func() error {
		conn, err := net.DialTimeout("tcp", addr.String(), 5*time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			return err
		}
		if _, err := io.WriteString(conn, "GET /hostname HTTP/1.0\r\n\r\n"); err != nil {
			return err
		}
		data, err := io.ReadAll(conn)
		_, answer, _ = strings.Cut(string(data), "\r\n\r\n")
		return err
	})
	if place == control {
		place = "outside"
	}
	c.judge(place+": http://"+addr.String()+"/hostname", answer, err, names)
}
