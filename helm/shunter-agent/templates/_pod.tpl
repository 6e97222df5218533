{{/* The agent's pod: of the Deployment, and of Jobs that take one run each. */}}

{{/* Where a pod runs and by which rules: of agents and of the test. */}}
{{- define "shunter-agent.placement" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.podSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .Values.dnsPolicy }}
dnsPolicy: {{ . }}
{{- end }}
{{- with .Values.dnsConfig }}
dnsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.hostAliases }}
hostAliases:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* How agents are spread, each constraint with the agents as those who are counted. */}}
{{- define "shunter-agent.spread" -}}
{{- $agents := dict "matchLabels" (include "shunter-agent.selectorLabels" . | fromYaml) -}}
{{- range .Values.topologySpreadConstraints }}
- {{ set (deepCopy .) "labelSelector" (default $agents .labelSelector) | toJson }}
{{- end }}
{{- end -}}

{{- define "shunter-agent.pod" -}}
metadata:
  {{- $labels := .Values.podLabels }}
  {{- $annotations := merge (dict "kubectl.kubernetes.io/default-container" "agent") .Values.podAnnotations }}
  {{- with include "shunter-agent.configuration" . }}
  {{- $annotations = merge (dict "checksum/configuration" (sha256sum .)) $annotations }}
  {{- end }}
  {{- include "shunter-agent.metadata" (dict "root" . "pod" true "labels" $labels "annotations" $annotations) | nindent 2 }}
spec:
  serviceAccountName: {{ include "shunter-agent.serviceAccountName" . }}
  automountServiceAccountToken: false
  # Variables of Services could have the names of settings: SHUNTER_SERVER_PORT, of one called shunter-server.
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ include "shunter-agent.terminationGracePeriodSeconds" . }}
  {{- include "shunter-agent.placement" . | trim | nindent 2 }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with include "shunter-agent.spread" . | fromYamlArray }}
  topologySpreadConstraints:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if .Values.autoscaling.scaledJob.enabled }}
  restartPolicy: Never
  {{- end }}
  {{- if or .Values.extraInitContainers (eq .Values.auth.mode "enrolment") }}
  initContainers:
    {{- with .Values.extraInitContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- if eq .Values.auth.mode "enrolment" }}
    - name: join
      {{- include "shunter-agent.joinContainer" . | nindent 6 }}
    {{- end }}
  {{- end }}
  containers:
    - name: agent
      image: {{ include "shunter-agent.image" . | quote }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args:
        {{- include "shunter-agent.arguments" . | nindent 8 }}
      env:
        {{- include "shunter-agent.environment" . | nindent 8 }}
      {{- with .Values.extraEnvFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      ports:
        - name: metrics
          containerPort: 9400
          protocol: TCP
      {{- with .Values.startupProbe }}
      startupProbe:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .Values.livenessProbe }}
      livenessProbe:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .Values.readinessProbe }}
      readinessProbe:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .Values.preStop }}
      lifecycle:
        preStop:
          {{- toYaml . | nindent 10 }}
      {{- end }}
      {{- with .Values.resources }}
      resources:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .Values.securityContext }}
      securityContext:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      volumeMounts:
        {{- include "shunter-agent.mounts" . | nindent 8 }}
    {{- with .Values.extraContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    {{- include "shunter-agent.volumes" . | nindent 4 }}
{{- end -}}

{{/* Spends one use of the invitation; the credential stays in the pod's own folder, the invitation is not in the agent. */}}
{{- define "shunter-agent.joinContainer" -}}
image: {{ include "shunter-agent.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args:
  - agent
  - join
  - {{ .Values.api.url | quote }}
  - --name
  - $(POD_NAME)
  - --token-file
  - /var/run/secrets/shunter-enrolment/token
env:
  - name: POD_NAME
    valueFrom:
      fieldRef:
        fieldPath: metadata.name
  - name: SHUNTER_HOME
    value: /var/lib/shunter
  {{- include "shunter-agent.connection" . | nindent 2 }}
{{- with .Values.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.securityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumeMounts:
  {{- include "shunter-agent.writableMounts" . | nindent 2 }}
  {{- include "shunter-agent.caMount" . | nindent 2 }}
  - name: enrolment
    mountPath: /var/run/secrets/shunter-enrolment
    readOnly: true
{{- end -}}
