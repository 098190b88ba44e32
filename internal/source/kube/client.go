package kube

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/braidnet/braid/internal/model"
)

// resource is where the API server keeps a kind.
type resource struct {
	gv    schema.GroupVersion
	name  string
	empty runtime.Object // the type that is expected on the wire
}

var resources = map[model.Kind]resource{
	model.KindNamespace:     {corev1.SchemeGroupVersion, "namespaces", &corev1.Namespace{}},
	model.KindNode:          {corev1.SchemeGroupVersion, "nodes", &corev1.Node{}},
	model.KindPod:           {corev1.SchemeGroupVersion, "pods", &corev1.Pod{}},
	model.KindService:       {corev1.SchemeGroupVersion, "services", &corev1.Service{}},
	model.KindEndpointSlice: {discoveryv1.SchemeGroupVersion, "endpointslices", &discoveryv1.EndpointSlice{}},
	model.KindNetworkPolicy: {networkingv1.SchemeGroupVersion, "networkpolicies", &networkingv1.NetworkPolicy{}},
	model.KindServiceCIDR:   {networkingv1.SchemeGroupVersion, "servicecidrs", &networkingv1.ServiceCIDR{}},
}

// codecs knows just the three groups that are read: the clientset of client-go links every one there is.
var codecs = func() serializer.CodecFactory {
	scheme := runtime.NewScheme()
	utilruntime.Must(corev1.AddToScheme(scheme))
	utilruntime.Must(discoveryv1.AddToScheme(scheme))
	utilruntime.Must(networkingv1.AddToScheme(scheme))
	return serializer.NewCodecFactory(scheme)
}()

// Config finds the API server: by a kubeconfig file and one of its contexts (empty: its current
// one), or, when both are empty, as a pod of the cluster does.
func Config(kubeconfig, kubeContext string) (*rest.Config, error) {
	if kubeconfig == "" && kubeContext == "" {
		cfg, err := rest.InClusterConfig()
		if errors.Is(err, rest.ErrNotInCluster) {
			return nil, fmt.Errorf("this is not a pod of a cluster (%w); give a kubeconfig file or a folder of manifests", err)
		}
		if err != nil {
			return nil, fmt.Errorf("read the pod's service account: %w; the pod needs automountServiceAccountToken", err)
		}
		return cfg, nil
	}
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	cfg, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules,
		&clientcmd.ConfigOverrides{CurrentContext: kubeContext}).ClientConfig()
	if err != nil {
		name := kubeconfig
		if name == "" {
			name = "the default place"
		}
		return nil, fmt.Errorf("read kubeconfig at %s, context %q: %w", name, kubeContext, err)
	}
	return cfg, nil
}

// clients holds one REST client per API group; they share one HTTP connection pool.
type clients map[schema.GroupVersion]*rest.RESTClient

func newClients(cfg *rest.Config) (clients, error) {
	cfg = rest.CopyConfig(cfg)
	if cfg.UserAgent == "" {
		cfg.UserAgent = rest.DefaultKubernetesUserAgent()
	}
	cfg.ContentType = runtime.ContentTypeProtobuf
	cfg.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	cfg.NegotiatedSerializer = codecs.WithoutConversion()
	httpClient, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, err
	}
	out := clients{}
	for _, r := range resources {
		if out[r.gv] != nil {
			continue
		}
		c := rest.CopyConfig(cfg)
		c.GroupVersion, c.APIPath = &r.gv, "/apis"
		if r.gv.Group == "" {
			c.APIPath = "/api"
		}
		if out[r.gv], err = rest.RESTClientForConfigAndClient(c, httpClient); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// listWatch returns what lists and watches one kind in all namespaces.
func (c clients) listWatch(kind model.Kind, node string) (*cache.ListWatch, error) {
	r, ok := resources[kind]
	if !ok {
		return nil, fmt.Errorf("read kind %q: there is no such kind, expected one of %v", kind, model.Kinds)
	}
	request := func(opts metav1.ListOptions) *rest.Request {
		if kind == model.KindPod && node != "" {
			opts.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", node).String()
		}
		return c[r.gv].Get().Resource(r.name).VersionedParams(&opts, metav1.ParameterCodec)
	}
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
			return request(opts).Do(ctx).Get()
		},
		WatchFuncWithContext: func(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
			opts.Watch = true
			return request(opts).Watch(ctx)
		},
	}, nil
}
