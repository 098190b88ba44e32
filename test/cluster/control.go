package main

import (
	"context"
	"os"
	"time"
)

const apiPort = 6443

// auditPolicy records who asked for what, without contents: enough to compare a role's grants with their use.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules: [{level: Metadata}]
`

// startControl starts etcd and the control plane, and waits until the API server is ready.
func startControl(ctx context.Context, o *options) error {
	if err := openPlace(o, control); err != nil {
		return err
	}
	if err := os.WriteFile(o.path(control, "audit.yaml"), []byte(auditPolicy), 0o644); err != nil {
		return err
	}
	for _, j := range []job{o.etcd(), o.apiserver()} {
		if err := start(ctx, o, control, j); err != nil {
			return err
		}
	}
	err := await(ctx, "the API server", 3*time.Minute, func() error {
		if err := alive(ctx, o, control, "etcd", "kube-apiserver"); err != nil {
			return err
		}
		_, err := o.kubectl(ctx, "get", "--raw", "/readyz")
		return err
	})
	if err != nil {
		return err
	}
	late := []job{o.controllers(), o.scheduler()}
	if o.Balancer {
		p, err := o.balancer()
		if err != nil {
			return err
		}
		late = append(late, job{Name: "balancer", Argv: []string{o.bin(p.name), "--kubeconfig=" + o.kubeconfig()}})
	}
	for _, j := range late {
		if err := start(ctx, o, control, j); err != nil {
			return err
		}
	}
	return nil
}

func (o *options) etcd() job {
	// Only the control plane's own network reaches these.
	const client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
	return job{Name: "etcd", Argv: []string{
		o.bin("etcd"), "--data-dir", o.path(control, "etcd"), "--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default=" + peer,
		"--unsafe-no-fsync", "--log-level", "warn",
	}}
}

func (o *options) apiserver() job {
	argv := []string{
		o.bin("kube-apiserver"), "--etcd-servers=http://127.0.0.1:2379", "--secure-port=6443",
		"--bind-address=" + unspecified(o.families()[0].control).String(),
		"--advertise-address=" + o.families()[0].control.String(),
		"--service-cluster-ip-range=" + o.each(func(f family) string { return f.services.String() }),
		"--cert-dir=" + o.pki(""), "--client-ca-file=" + o.pki("ca.crt"),
		"--tls-cert-file=" + o.pki("apiserver.crt"), "--tls-private-key-file=" + o.pki("apiserver.key"),
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file=" + o.pki("sa.key"),
		"--service-account-signing-key-file=" + o.pki("sa.key"),
		"--kubelet-certificate-authority=" + o.pki("ca.crt"), "--kubelet-preferred-address-types=InternalIP",
		"--kubelet-client-certificate=" + o.pki("apiserver-kubelet.crt"), "--kubelet-client-key=" + o.pki("apiserver-kubelet.key"),
		"--requestheader-client-ca-file=" + o.pki("ca.crt"), "--requestheader-allowed-names=front-proxy-client",
		"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-", "--enable-aggregator-routing=true",
		"--proxy-client-cert-file=" + o.pki("front-proxy.crt"), "--proxy-client-key-file=" + o.pki("front-proxy.key"),
		"--audit-policy-file=" + o.path(control, "audit.yaml"), "--audit-log-path=" + o.path(control, "log", "audit.log"),
	}
	return job{Name: "kube-apiserver", Argv: o.gated(argv)}
}

func (o *options) controllers() job {
	argv := []string{
		o.bin("kube-controller-manager"), "--kubeconfig=" + o.pki("controller-manager.kubeconfig"), "--leader-elect=false",
		"--bind-address=127.0.0.1", "--use-service-account-credentials=true",
		"--allocate-node-cidrs=true", "--cluster-cidr=" + o.each(func(f family) string { return f.pods.String() }),
		"--service-cluster-ip-range=" + o.each(func(f family) string { return f.services.String() }),
		"--root-ca-file=" + o.pki("ca.crt"), "--service-account-private-key-file=" + o.pki("sa.key"),
		"--cluster-signing-cert-file=" + o.pki("ca.crt"), "--cluster-signing-key-file=" + o.pki("ca.key"),
		"--cert-dir=" + o.pki(""),
	}
	return job{Name: "kube-controller-manager", Argv: o.gated(argv)}
}

func (o *options) scheduler() job {
	argv := []string{
		o.bin("kube-scheduler"), "--kubeconfig=" + o.pki("scheduler.kubeconfig"), "--leader-elect=false",
		"--bind-address=127.0.0.1", "--cert-dir=" + o.pki(""),
	}
	return job{Name: "kube-scheduler", Argv: o.gated(argv)}
}

// gated adds the cluster's feature gates.
func (o *options) gated(argv []string) []string {
	if o.Gates != "" {
		argv = append(argv, "--feature-gates="+o.Gates)
	}
	return argv
}
